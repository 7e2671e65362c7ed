"""The built-in workloads: their sizes, their repeatability, that they learn, and what they refuse."""

from __future__ import annotations

import gzip
import io
import itertools
import math
import pickle
import struct
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from batchscope.errors import BatchscopeError, DataError, WorkloadError
from batchscope.workload import catalogue, cifar10, fashion, text
from batchscope.workload.catalogue import BUILTINS, load_builtin
from batchscope.workload.workload import Workload

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def cifar_part(seed: int, records: int = 30) -> bytes:
    """Images whose red plane tells their class, in CIFAR-10's binary format."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(records, dtype=torch.uint8) % 10
    pixels = torch.randint(0, 256, (records, 3, 1024), dtype=torch.uint8, generator=generator)
    pixels[:, 0] = 25 * classes[:, None]
    return torch.cat([classes[:, None], pixels.flatten(1)], 1).numpy().tobytes()


CIFAR_PARTS = {name: cifar_part(i) for i, name in enumerate(cifar10.TRAINING_MEMBERS + cifar10.VALIDATION_MEMBERS)}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that spin for each other cost far more than they save on steps this small, on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny", numbered=False)
    members = {f"cifar-10-batches-bin/{name}": part for name, part in CIFAR_PARTS.items()}
    write_tar(folder / cifar10.ARCHIVE.name, members | {"cifar-10-batches-bin/readme.html": b"about"})
    return folder


@pytest.fixture
def fashion_data(wanted: Callable[[bool, str], None]) -> None:
    wanted(DEBIAN.is_dir(), "dataset-fashion-mnist")


@pytest.fixture(scope="module")
def load(cifar_folder: Path, wanted: Callable[[bool, str], None]) -> Callable[[str], Workload]:
    loaded: dict[str, Workload] = {}

    def make(name: str) -> Workload:
        if name.startswith("fashion"):
            wanted(DEBIAN.is_dir(), "dataset-fashion-mnist")
        if name not in loaded:
            loaded[name] = load_builtin(name, cifar_folder if name == "cifar10" else None)
        return loaded[name]

    return make


def tensors(workload: Workload) -> tuple[Tensor, ...]:
    assert isinstance(workload.train, tuple)
    assert isinstance(workload.validation, tuple)
    return workload.train + workload.validation


def steps(workload: Workload, count: int) -> tuple[list[float], torch.nn.Module]:
    """The training loss at each of a few updates, on examples in a shuffled order."""
    assert isinstance(workload.train, tuple)
    torch.manual_seed(0)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), workload.learning_rate)
    n, size = workload.training_examples, workload.batch_size
    shuffled = torch.randperm(n)
    order = itertools.cycle([shuffled[i : i + size] for i in range(0, n - size + 1, size)])
    losses = []
    for where in itertools.islice(order, count):
        output, target = workload.output_and_target(model, tuple(part[where] for part in workload.train))
        loss = workload.loss(output, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("name", BUILTINS)
def test_the_catalogue_tells_the_truth(name: str, load: Callable[[str], Workload]) -> None:
    workload, entry = load(name), BUILTINS[name]
    if name not in ("cifar10", "text"):  # a tiny stand-in, and what this machine has
        assert workload.training_examples == entry.training_examples
        assert workload.validation_examples == entry.validation_examples
    model = workload.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
    optimizer = workload.optimizer(model.parameters(), workload.learning_rate)
    assert entry.optimizer.split()[0].rstrip(",") == type(optimizer).__name__
    assert f"batch size {workload.batch_size}, learning rate {workload.learning_rate:g}" in entry.optimizer
    assert ("momentum" in entry.optimizer) == (optimizer.defaults.get("momentum", 0) > 0)
    assert workload.title == name + (" (tiny)" if name == "cifar10" else "")


@pytest.mark.parametrize("name", BUILTINS)
def test_it_learns(name: str, load: Callable[[str], Workload]) -> None:
    workload = load(name)
    losses, model = steps(workload, 15 if name == "cifar10" else 40)
    classes = {"quadratic": None, "text": text.VOCABULARY}.get(name, 10)
    if classes:
        assert losses[0] == pytest.approx(math.log(classes), rel=0.1)
        assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    else:
        assert sum(losses[-10:]) < sum(losses[:10])
    if workload.score is not None:
        model.eval()
        assert isinstance(workload.validation, tuple)
        with torch.no_grad():
            x, y = (part[:500] for part in workload.validation)
            assert 1.2 / (classes or 1) < float(workload.score(model(x), y)) <= 1


@pytest.mark.parametrize("name", ["digits", "text", "cifar10"])
def test_two_loads_are_the_same(name: str, load: Callable[[str], Workload], cifar_folder: Path) -> None:
    again = load_builtin(name, cifar_folder if name == "cifar10" else None)
    for ours, theirs in zip(tensors(load(name)), tensors(again), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("name", BUILTINS)
def test_it_pickles_by_name(name: str, load: Callable[[str], Workload]) -> None:
    workload = load(name)
    parts = (workload.model, workload.loss, workload.score, workload.optimizer, workload.forward)
    assert len(pickle.dumps(parts)) < 2_000
    few = replace(
        workload,
        train=tuple(part[: workload.batch_size].clone() for part in tensors(workload)[:2]),
        validation=tuple(part[:8].clone() for part in tensors(workload)[2:]),
    )
    back = pickle.loads(pickle.dumps(few))
    torch.manual_seed(1)
    ours = few.model().state_dict()
    torch.manual_seed(1)
    theirs = back.model().state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", BUILTINS)
def test_models_run_in_double_and_leave_their_input_alone(name: str, load: Callable[[str], Workload]) -> None:
    workload = load(name)
    x = tensors(workload)[0][:4]
    before = x.clone()
    output = workload.model().double()(x.double() if x.is_floating_point() else x)
    assert output.dtype == torch.float64
    assert torch.equal(x, before)


def test_digits(load: Callable[[str], Workload]) -> None:
    x, y, vx, vy = tensors(load("digits"))
    assert x.shape == (1_437, 64)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert (float(x.min()), float(x.max())) == (0, 1)
    shares, held = y.bincount() / len(y), vy.bincount() / len(vy)
    assert (shares - held).abs().max() < 0.005  # stratified
    assert len(torch.unique(torch.cat([x, vx]), dim=0)) == 1_797  # nothing on both sides


@pytest.mark.usefixtures("fashion_data")
def test_fashion(load: Callable[[str], Workload]) -> None:
    x, y, vx, vy = tensors(load("fashion"))
    assert (x.shape, vx.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert x.dtype == torch.uint8
    assert y.bincount().tolist() == [6_000] * 10
    assert vy.bincount().tolist() == [1_000] * 10
    scaled = x.double() / 255
    assert scaled.mean().item() == pytest.approx(fashion._MEAN, abs=1e-4)
    assert scaled.std().item() == pytest.approx(fashion._DEVIATION, abs=1e-4)


@pytest.mark.usefixtures("fashion_data")
def test_fashion_from_debians_folder_by_name(load: Callable[[str], Workload]) -> None:
    workload = fashion.fashion(DEBIAN)
    assert workload.title == "fashion"
    assert all(map(torch.equal, tensors(workload), tensors(load("fashion"))))


def write_idx_folder(folder: Path, *, images: int = 80, labels: int = 80, size: int = 28, top: int = 9) -> Path:
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        pixels = bytes(i % 251 for i in range(images * size * size))
        content = struct.pack(">4B3I", 0, 0, 8, 3, images, size, size) + pixels
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, 1))
        content = struct.pack(">4BI", 0, 0, 8, 1, labels) + bytes(i % (top + 1) for i in range(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(content)
    return folder


def test_fashion_from_a_set_of_the_same_format(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "kuzushiji")
    workload = load_builtin("fashion-mlp", str(folder))
    assert workload.title == "fashion-mlp (kuzushiji)"
    assert (workload.training_examples, workload.validation_examples) == (80, 80)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"labels": 79}, "one label for each image"), ({"size": 32}, "28×28"), ({"top": 10}, "labels up to 10")],
)
def test_fashion_refuses(tmp_path: Path, wrong: dict[str, int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        fashion.fashion(write_idx_folder(tmp_path / "bad", **wrong))


def test_fashion_without_a_file(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "some")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"must hold t10k-labels-idx1-ubyte\.gz"):
        fashion.fashion(folder)
    with pytest.raises(WorkloadError, match="'cnn' or 'mlp'"):
        fashion.fashion(folder, model=cast("Any", "resnet"))


def test_cifar10_reads_archives_and_folders_alike(cifar_folder: Path, tmp_path: Path) -> None:
    archive = cifar_folder / cifar10.ARCHIVE.name
    inner = tmp_path / "mine" / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for name, part in CIFAR_PARTS.items():
        (inner / name).write_bytes(part)
    plain = write_tar(tmp_path / "plain.tar", CIFAR_PARTS, "w")
    first = cifar10.cifar10(cifar_folder)
    for place in (archive, inner, inner.parent, plain):
        assert all(map(torch.equal, tensors(first), tensors(cifar10.cifar10(place))))
    x, y, vx, vy = tensors(first)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((150, 3, 32, 32), torch.uint8, (150,), torch.int64)
    assert torch.equal(x[:, 0, 5, 7], 25 * y.to(torch.uint8))  # the red plane, where it should be
    assert len(vx) == 30
    assert vy[:3].tolist() == [0, 1, 2]


def test_cifar10_never_writes_where_a_member_says(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    members = {f"../../{name}": part for name, part in CIFAR_PARTS.items()}
    write_tar(folder / "evil.tar.gz", members | {"/etc/evil": b"x"})
    assert cifar10.cifar10(folder / "evil.tar.gz").training_examples == 150
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "evil.tar.gz"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test_batch.bin": None}, "without test_batch.bin"),
        ({"data_batch_2.bin": b""}, "of 0 bytes"),
        ({"data_batch_2.bin": CIFAR_PARTS["data_batch_2.bin"][:-1]}, "up to 10,000 records of 3073 bytes"),
        ({"data_batch_2.bin": b"\x0a" + CIFAR_PARTS["data_batch_2.bin"][1:]}, "classes up to 10"),
    ],
)
def test_cifar10_refuses(tmp_path: Path, change: dict[str, bytes | None], says: str) -> None:
    members = {name: part for name, part in (CIFAR_PARTS | change).items() if part is not None}
    with pytest.raises(DataError, match=says):
        cifar10.cifar10(write_tar(tmp_path / "x.tar.gz", members))


def test_cifar10_refuses_damaged_archives(cifar_folder: Path, tmp_path: Path) -> None:
    whole = (cifar_folder / cifar10.ARCHIVE.name).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1000] + b"\0" * 1000, b"no archive", b""):
        (tmp_path / "x.tar.gz").write_bytes(content)
        with pytest.raises(DataError):
            cifar10.cifar10(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match="must be a folder"):
        cifar10.cifar10(tmp_path / "none")
    with pytest.raises(DataError, match=r"must hold cifar-10-binary\.tar\.gz"):
        cifar10.cifar10(write_idx_folder(tmp_path / "other"))
    link = tarfile.TarInfo("test_batch.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(DataError, match=r"test_batch\.bin"):
        cifar10.cifar10(tmp_path / "link.tar")


def test_text_of_the_standard_library(load: Callable[[str], Workload]) -> None:
    x, y, vx, vy = tensors(load("text"))
    assert x.shape[1] == y.shape[1] == text.CONTEXT
    assert 20_000 < len(x) < text.MAX_CHARACTERS / text.CONTEXT
    assert len(vx) == len(vy) == text.VALIDATION_WINDOWS
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(x[1:, 0], y[:-1, -1])  # the windows follow one another
    assert (x.dtype, int(x.min()), int(x.max())) == (torch.int64, 0, text.VOCABULARY - 1)
    for path in text._files(Path(sysconfig.get_paths()["stdlib"]), ".py"):
        assert not {"test", "tests", "site-packages"} & set(path.parts[len(text.standard_library().parts) :])


def test_text_of_one_file_validates_with_its_end(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("a" * 8_998 + "\r\n" + "b" * 1_000, newline="", encoding="utf-8")
    workload = load_builtin("text", str(path))
    assert workload.title == "text (story.txt)"
    x, _, vx, vy = tensors(workload)
    letters = text.encode("ab\n").tolist()
    assert set(x.flatten().tolist()) == {letters[0]}
    assert set(torch.cat([vx, vy]).flatten().tolist()) == {letters[1]}


def test_text_of_a_folder_keeps_files_whole(tmp_path: Path) -> None:
    for i in range(26):
        (tmp_path / f"{i:02}.txt").write_text(chr(97 + i) * 1_000)
    (tmp_path / "picture.bin").write_bytes(b"\x89PNG\xff\xfe" * 2_000)
    (tmp_path / "zeros.txt").write_bytes(b"\0" * 2_000)
    (tmp_path / ".hidden").write_text("~" * 2_000)
    x, _, vx, _ = tensors(text.text(tmp_path))
    ours, theirs = set(x.flatten().tolist()), set(vx.flatten().tolist())
    letters = set(text.encode("abcdefghijklmnopqrstuvwxyz").tolist())
    newline = {0}
    assert len(theirs - newline) == 2
    assert not (ours & theirs) - newline
    assert (ours | theirs) - newline == letters


def test_text_of_a_folder_with_one_large_file(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_text("a" * 20_000)
    (tmp_path / "small.txt").write_text("b" * 10)
    workload = text.text(tmp_path)
    assert workload.validation_examples == pytest.approx(2_000 / text.CONTEXT, abs=1)


def test_text_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        text.text(tmp_path / "none.txt")
    with pytest.raises(DataError, match="at least 5,000 characters; got 0"):
        text.text(tmp_path)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="at least 5,000 characters; got 9"):
        text.text(tmp_path / "short.txt")
    (tmp_path / "binary").write_bytes(b"\0\1" * 10_000)
    with pytest.raises(DataError, match="must be a text file"):
        text.text(tmp_path / "binary")


def test_text_cannot_see_what_comes_next() -> None:
    torch.manual_seed(0)
    model = text.CharacterTransformer()
    x = torch.randint(0, text.VOCABULARY, (2, text.CONTEXT))
    changed = x.clone()
    changed[:, 40:] = 0
    difference = (model(x) - model(changed)).abs().amax((0, 2))
    assert difference[:40].max() < 1e-5
    assert difference[40:].min() > 1e-3


def test_encode() -> None:
    printable = "".join(map(chr, range(32, 127)))
    assert text.encode("\n" + printable).tolist() == list(range(96))
    assert text.encode("\t\x7f\x80é日\U0001f600\ud800").tolist() == [96] * 7


def test_describe_reads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cifar_folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    described = {description.name: description for description in catalogue.describe()}
    assert list(described) == list(BUILTINS)
    assert not described["cifar10"].available
    assert described["cifar10"].location == "https://www.cs.toronto.edu/~kriz/"
    assert described["fashion"].available == DEBIAN.is_dir()
    assert all(described[name].available for name in ("digits", "text", "quadratic"))
    assert described["digits"].training_examples == 1_437
    (tmp_path / "batchscope").mkdir()
    (tmp_path / "batchscope" / cifar10.ARCHIVE.name).touch()
    assert {d.name: d.location for d in catalogue.describe()}["cifar10"] == str(tmp_path / "batchscope")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("digit", None, "Did you mean digits?"),
        ("imagenet", None, "Choose one of these"),
        ("digits", "folder", "digits takes no data"),
        ("quadratic", "folder", "quadratic takes no data"),
        ("fashion", "/no/such/folder", "must be a folder"),
    ],
)
def test_load_builtin_refuses(name: str, data: str | None, says: str) -> None:
    with pytest.raises(BatchscopeError) as caught:
        load_builtin(name, data)
    assert says in str(caught.value)
