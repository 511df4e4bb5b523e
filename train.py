"""Trains and evaluates the models of a family: the module `auto_compressor.train`, as a script of this repository.

python train.py --config_name tiny --output_dir checkpoints/tiny --do_train --do_eval --max_steps 200
torchrun --standalone --nproc_per_node 8 train.py --model_name_or_path facebook/opt-2.7b ...
"""

import sys

from auto_compressor import train


if __name__ == "__main__":
    train.main()
else:
    sys.modules[__name__] = train
