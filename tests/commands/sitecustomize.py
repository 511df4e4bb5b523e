"""
On the path of every command that a test starts. transformers and peft import these two wherever they are installed:
two seconds for each command, and lines on standard error that are not ours.
"""

import sys


sys.modules.update(torchao=None, bitsandbytes=None)
