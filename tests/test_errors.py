import errno

import pytest

from emanet.errors import out_of_memory, printable, short, some, suggest


def test_suggest_names_the_nearest_or_all():
    assert suggest("stepz", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert suggest("zzz", ["b", "a"]) == "; there are: a, b"
    assert suggest("zzz", []) == ""


def test_some_counts_what_it_leaves_out():
    assert some([1, 2]) == "1, 2" and some(range(7), 3) == "0, 1, 2 and 4 more"


def test_short_is_one_line_whatever_the_value():
    assert short("a") == "'a'" and short((2, 4)) == "(2, 4)"
    for value in ("x" * 10_000, 10**400, 10**5000, [[[[[[[[0]]]]]]]], {"a": 10**5000}):
        assert len(short(value)) < 300


def test_names_are_shown_without_control_codes():
    assert printable("a b\n\x1b[31m\x85é\udcff") == r"a b\n\x1b[31m\x85é" + "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223: std::bad_alloc"),
    ],
)
def test_memory_that_was_not_enough_is_told_from_other_errors(error):
    assert out_of_memory(error)


def test_other_errors_are_not_for_lack_of_memory():
    for error in (RuntimeError("shapes do not fit"), ValueError("out of memory"), OSError(errno.ENOSPC, "full")):
        assert not out_of_memory(error)
