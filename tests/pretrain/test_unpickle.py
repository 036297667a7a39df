"""Pickles of others: what is read from all the ways of writing them, and that nothing in them is run."""

import os
import pickle
from collections import OrderedDict, deque
from io import BytesIO

import numpy as np
import pytest

from pretrain.sources.unpickle import load
from tests.pretrain.layouts import Python2Pickler, python2_pickle

CONTENT = {
    "bytes": np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
    "floats": np.array([[0.5, -2.0]], dtype=np.float32),
    "texts": np.array([b"ab", b"c"]),
    "number": np.int64(7),
    "plain": [1, 2.5, None, True, (3, "four"), {"five": 5}],
}


def dumped(tmp_path, content, protocol):
    (tmp_path / "a.pkl").write_bytes(
        python2_pickle(content) if protocol == "Python 2" else pickle.dumps(content, protocol=protocol)
    )
    return tmp_path / "a.pkl"


@pytest.mark.parametrize("protocol", ["Python 2", 0, 2, 3, 4, 5])
def test_arrays_and_plain_containers_are_read(tmp_path, protocol):
    read = load(dumped(tmp_path, CONTENT, protocol))
    assert read.keys() == CONTENT.keys()
    for key in ("bytes", "floats", "texts"):
        assert read[key].dtype == CONTENT[key].dtype
        assert np.array_equal(read[key], CONTENT[key])
    assert read["number"] == 7
    assert read["plain"] == CONTENT["plain"]


def test_objects_of_arrays_and_ordered_dictionaries_are_read(tmp_path):
    content = OrderedDict(b=np.array(["x", "yz"], dtype=object), a=b"\xff\x00")
    read = load(dumped(tmp_path, content, 2))
    assert list(read) == ["b", "a"]
    assert read["b"].tolist() == ["x", "yz"]
    assert read["a"] == b"\xff\x00"


def test_the_names_that_numpy_1_wrote_are_known(tmp_path):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(np.arange(3), protocol=0).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core" in file.read_bytes()
    assert load(file).tolist() == [0, 1, 2]


class Runs:
    """Runs ``call(*args)`` when it is unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("call", "name"), [(os.system, r"(posix|nt)\.system"), (eval, r"(builtins|__builtin__)\.eval"), (open, "io.open")]
)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, monkeypatch, call, name, protocol):
    monkeypatch.chdir(tmp_path)
    arguments = {os.system: ["touch run"], eval: ["__import__('os').mkdir('run')"], open: ["run", "w"]}[call]
    content = {"image_data": np.zeros(2), "class_dict": [Runs(call, *arguments)]}
    file = dumped(tmp_path, content, protocol)
    with pytest.raises(ValueError, match=rf"a.pkl: it asks for {name}; only arrays and plain containers are read"):
        load(file)
    assert not (tmp_path / "run").exists()
    if call is not open:
        pickle.loads(file.read_bytes())  # the pickle would have done it
        assert (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [deque([1]), np.random.default_rng(0), Runs(np.fromfile, "a"), Runs(getattr, 1, "real")]
)
def test_other_objects_are_refused(tmp_path, content):
    if isinstance(content, Runs):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=2))
    else:
        dumped(tmp_path, content, 2)
    with pytest.raises(ValueError, match="asks for .*; only arrays and plain containers are read from a pickle"):
        load(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "content",
    [
        Runs(np.ndarray, (1,), np.dtype("O"), b"\1" * 8),
        Runs(np._core.multiarray.scalar, np.dtype("O"), b"\1" * 8),
        Runs(np._core.numeric._frombuffer, b"\1" * 8, np.dtype("O"), (1,), "C"),
        Runs(np.dtype, "u1,O", False, True),
    ],
    ids=["ndarray", "scalar", "_frombuffer", "fields"],
)
def test_bytes_never_pass_for_addresses_of_objects(tmp_path, content):
    """Read by pickle itself, the first of these ends the process."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="a.pkl"):
        load(tmp_path / "a.pkl")


def test_an_array_of_objects_needs_a_list(tmp_path):
    array = pickle.dumps(np.array(["x"], dtype=object), protocol=2)
    assert array.count(b"]q") == 1  # its list
    start = array.index(b"]q")
    forged = array[:start] + pickle.SHORT_BINBYTES + b"\x08" + b"\1" * 8 + array[array.index(b"a", start) + 1 :]
    (tmp_path / "a.pkl").write_bytes(forged)
    with pytest.raises(
        ValueError, match="a.pkl is truncated or not a pickle .TypeError: object pickle not returning list"
    ):
        load(tmp_path / "a.pkl")


def test_byte_order_is_kept(tmp_path):
    numbers = np.array([1, 258], dtype=">i4")
    for protocol in ("Python 2", 2, 5):
        assert load(dumped(tmp_path, {"a": numbers}, protocol))["a"].tolist() == [1, 258]


@pytest.mark.parametrize("keep", [0, 1, 10, 100, -1])
def test_truncated_pickles_are_named(tmp_path, keep):
    file = dumped(tmp_path, CONTENT, "Python 2")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="a.pkl is truncated or not a pickle .*fetch it again"):
        load(file)


def test_the_python_2_pickles_of_the_tests_are_as_python_2_makes_them():
    """What cPickle of Python 2.7 gives for ['ab'] with protocol 2, but for the shorter form of short texts."""
    file = BytesIO()
    Python2Pickler(file, protocol=2).dump(["ab"])
    assert file.getvalue() == b"\x80\x02]q\x00T\x02\x00\x00\x00abq\x01a."
