#!/usr/bin/env bash
# constriction 0.5.0, numpy 2.4.6: a table of probabilities, one row for each symbol, in Fortran order.
# A good guess: two equal arrays are coded alike, whatever their order in memory (a transposed table, say, or one that
#     came from torch as a view).
# Seen: the memory is read row by row as if it were in C order. Other distributions are used, without an error: what
#     was coded with the one array is decoded to other symbols with the other.
# Ours: both orders are coded alike, tests/byte_lm/test_byte_lm_codec.py::test_any_order_in_memory_is_coded_the_same
source "$(dirname "$0")/environment.sh" constriction==0.5.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import constriction
import numpy as np


family = constriction.stream.model.Categorical(perfect=False)
table = np.random.default_rng(0).dirichlet(np.ones(5), size=3)
transposed = np.asfortranarray(table)
symbols = np.array([1, 3, 0], dtype=np.int32)


def words(probabilities):
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, family, probabilities)
    return encoder.get_compressed()


def decoded(compressed, probabilities):
    return constriction.stream.queue.RangeDecoder(compressed).decode(family, probabilities).tolist()


rows, columns = words(table), words(transposed)
print("the arrays are equal:", np.array_equal(table, transposed))
print("symbols", symbols.tolist(), "become", rows.tolist(), "in C order,", columns.tolist(), "in Fortran order;")
print("the latter are decoded with the table in C order to", decoded(columns, table))
if not (decoded(rows, table) == symbols.tolist() != decoded(columns, table)):
    sys.exit("The behaviour changed.")
PYTHON
