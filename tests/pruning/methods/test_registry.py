"""Methods by name: our own, registered ones, those of installed packages, and ``module:Name``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import hybridprune
from hybridprune import methods
from hybridprune.config import CutOptions, PruneConfig, SpConfig, checked, resolve, to_json
from hybridprune.config.methods import METHOD_NAMES, METHODS
from hybridprune.errors import UserError
from hybridprune.methods import ChannelMethod, names, register
from hybridprune.pruning.channels.scores import magnitude
from hybridprune.pruning.method import BranchMethod, DirectionMethod
from hybridprune.pruning.methods import find

MINE = ChannelMethod(magnitude.l1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten afterwards."""
    for name in ("mine", "other"):
        monkeypatch.setitem(METHODS.added, name, MINE)
        del METHODS.added[name]


def offered(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(
        "hybridprune.config.registry.entry_points", lambda group: points if group == "hybridprune.methods" else ()
    )


def point(name: str, value: str, package: str) -> EntryPoint:
    class Distribution:
        name = package

    return EntryPoint(name, value, "hybridprune.methods")._for(Distribution())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_name_has_a_method(name: str) -> None:
    assert isinstance(find(name), DirectionMethod | ChannelMethod | BranchMethod)


def test_no_two_names_have_one_method() -> None:
    assert len({id(find(name)) for name in METHOD_NAMES}) == len(METHOD_NAMES)


@pytest.mark.usefixtures("added")
def test_a_registered_name_is_one_of_the_methods_everywhere() -> None:
    with pytest.raises(UserError, match="mine"):
        resolve(PruneConfig(), ["--method", "mine"], prog="x", description="")
    register("mine", MINE)
    register("mine", MINE)  # as when its module is loaded again
    assert names() == [*METHOD_NAMES, "mine"] and find("mine") is MINE
    invocation = resolve(PruneConfig(), ["--method", "mine"], prog="x", description="")
    assert invocation.config.cut.method == "mine" == to_json(invocation.config)["method"]
    with pytest.raises(UserError, match="did you mean mine"):
        resolve(PruneConfig(), ["--method", "minne"], prog="x", description="")


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("name", ["l1", "mine", "a:b", "a,b", "", " a", 5])
def test_names_that_are_taken_or_could_not_be_given_are_refused(name: str) -> None:
    register("mine", MINE)
    with pytest.raises(UserError, match=f"^name {name!r}: "):
        register(name, ChannelMethod(magnitude.random))
    assert find("mine") is MINE


@pytest.mark.usefixtures("added")
def test_only_methods_are_registered() -> None:
    with pytest.raises(UserError, match=r"^method 5: is a int; give a ChannelMethod or DirectionMethod"):
        register("mine", 5)  # type: ignore[arg-type]
    assert "mine" not in METHODS


def test_an_installed_package_adds_its_method(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "theirs.py").write_text("from hybridprune.pruning.methods.by_score import L1 as METHOD")
    offered(monkeypatch, point("extra", "theirs:METHOD", "their-package"))
    assert "extra" in METHODS and names() == [*METHOD_NAMES, "extra"]
    assert "theirs" not in sys.modules  # to know the name imports nothing
    assert find("extra") is find("l1")
    with pytest.raises(UserError, match="taken"):
        register("extra", MINE)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (["gone:METHOD"], "--method extra: of the package package-0: there is no module gone"),
        (["broken:METHOD"], r"--method extra: of the package package-0: importing broken fails \(ZeroDivisionError: "),
        (["theirs:gone"], "--method extra: of the package package-0: theirs has no gone"),
        (["theirs:METHOD", "theirs:METHOD"], "--method extra: package-0 and package-1 both offer it; uninstall one"),
        (["theirs:number"], "--method extra: is a int; give a ChannelMethod or DirectionMethod"),
    ],
)
def test_a_broken_package_is_one_line_that_names_it(
    points: list[str], message: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "theirs.py").write_text("from hybridprune.pruning.methods.by_score import L1 as METHOD\nnumber = 5")
    (folder / "broken.py").write_text("1 / 0")
    offered(monkeypatch, *(point("extra", value, f"package-{i}") for i, value in enumerate(points)))
    with pytest.raises(UserError, match=f"^{message}") as refused:
        find("extra")
    assert "\n" not in str(refused.value)
    assert find("l1")  # others are not concerned


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone:METHOD", "there is no module gone, installed or in "),
        ("mine.gone:METHOD", "there is no module mine.gone, "),
        ("mine:METHODS", "mine has no METHODS; give a name that it defines"),
        ("mine:METHOD.gone", "mine has no METHOD.gone"),
        ("mine:number", "is a int; give a ChannelMethod or DirectionMethod of hybridprune.methods"),
        ("broken:METHOD", r"importing broken fails \(ZeroDivisionError: .*, broken.py line 2\)"),
        ("garbled:METHOD", r"importing garbled fails \(SyntaxError: .*, garbled.py line 2\)"),
        ("needs:METHOD", r"importing needs fails \(ModuleNotFoundError: .*hybridprune_gone.*, needs.py line 1\)"),
        ("leaves:METHOD", r"importing leaves fails \(SystemExit: .*"),
    ],
)
def test_a_mistake_in_a_module_of_the_users_own_is_one_line(name: str, message: str, folder: Path) -> None:
    (folder / "mine.py").write_text("from hybridprune.pruning.methods.by_score import L1 as METHOD\nnumber = 5")
    (folder / "broken.py").write_text("\n1 / 0")
    (folder / "garbled.py").write_text("\n1 +")
    (folder / "needs.py").write_text("import hybridprune_gone")
    (folder / "leaves.py").write_text("raise SystemExit(3)")
    before = list(sys.path)
    with pytest.raises(UserError, match=f"^--method {name}: {message}") as refused:
        find(name)
    assert "\n" not in str(refused.value) and sys.path == before
    assert find("mine:METHOD") is find("l1") and sys.path == before


def test_a_file_of_the_working_directory_hides_no_installed_module(folder: Path) -> None:
    (folder / "colorsys.py").write_text("raise RuntimeError")
    sys.modules.pop("colorsys", None)
    with pytest.raises(UserError, match="colorsys has no METHOD"):
        find("colorsys:METHOD")


def test_an_object_stands_in_the_place_of_a_name() -> None:
    assert checked(CutOptions(method=MINE), "cut", CutOptions).method is MINE is find(MINE)
    assert str(MINE) == "ChannelMethod(l1)"
    with pytest.raises(UserError, match="method"):
        checked(CutOptions(method=5), "cut", CutOptions)  # type: ignore[arg-type]


def test_a_file_does_not_say_what_is_imported(folder: Path) -> None:
    """A configuration may be a stranger's. Its name is known, its modules are not imported."""
    (folder / "evil.py").write_text("raise AssertionError('imported')")
    (folder / "config.json").write_text('{"method": "evil:METHOD"}')
    arguments = {"prog": "x", "description": "", "config_path": "config.json"}
    with pytest.raises(UserError, match=r"^config.json: method evil:METHOD: a file may not say what is imported"):
        resolve(PruneConfig(), [], **arguments)
    assert resolve(PruneConfig(), ["--method", "l1"], **arguments).config.cut.method == "l1"
    assert resolve(PruneConfig(), ["--method", "evil:METHOD"], **arguments).config.cut.method == "evil:METHOD"
    assert resolve(SpConfig(), [], **arguments)  # other stages do not read it
    assert "evil" not in sys.modules


def test_the_public_names_are_there() -> None:
    assert all(hasattr(methods, name) for name in methods.__all__)
    assert hybridprune.methods is methods
