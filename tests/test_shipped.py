from __future__ import annotations

import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas import shipped
from nas.arch import parse
from nas.errors import UserError
from nas.space import load_space
from nas.target import TargetProfile

HOST = shipped.read("targets", "host")[1]
KINDS = ("spaces", "targets", "studies")
BUILT_IN = [(kind, name) for kind in KINDS for name in shipped.names(kind)]


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 1


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pairs: tuple[int, int] = (1, 1)
    inner: Inner | None = None
    rows: list[Inner] = []
    table: dict[str, Inner] = {}

    def __post_init__(self) -> None:
        if self.pairs == (0, 0):
            raise ValueError("a pair of zeros is no pair")


def message(text: str, type: type = TargetProfile) -> str:
    with pytest.raises(UserError) as error:
        shipped.decode(text, type, "my.toml")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind, name", BUILT_IN, ids=lambda value: str(value))
def test_every_built_in_file_is_toml_that_opens_with_a_comment_saying_what_it_is(kind, name):
    found, text = shipped.read(kind, name)
    assert found == name
    assert tomllib.loads(text)
    assert text.startswith("# ")


@pytest.mark.parametrize("name", shipped.names("targets"))
def test_every_built_in_target_loads_under_its_own_name_and_names_its_source(name):
    target = shipped.load_target(name)
    assert target.name == name
    assert len(target.source) > 20


@pytest.mark.parametrize("name", shipped.names("spaces"))
def test_every_built_in_space_samples_architectures_that_build_and_round_trip(name):
    import optuna

    from nas.network import build

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = load_space(name)
    assert space.name == name
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        architecture = space.sample(study.ask(), clip_s=2.0)
        assert parse(str(architecture)) == architecture
        assert sum(weight.numel() for weight in build(architecture, classes=10).parameters()) > 0


def test_the_host_is_a_built_in_target_on_one_thread_and_on_all_cores():
    assert shipped.load_target("host").threads == 1
    assert shipped.load_target("host-all").threads == 0


def test_a_user_s_file_is_read_from_its_path_and_named_by_its_stem(tmp_path):
    path = tmp_path / "my board.toml"
    path.write_text(HOST.replace('name = "host"', 'name = "my board"'), encoding="utf-8")
    assert shipped.read("targets", str(path)) == ("my board", path.read_text())
    assert shipped.load_target(str(path)).name == "my board"


@given(
    st.builds(
        TargetProfile,
        name=st.text(min_size=1),
        description=st.text(),
        source=st.text(),
        runtime=st.just("onnxruntime"),
        threads=st.integers(0, 64),
        size_kind=st.sampled_from(["file_bytes", "parameter_bytes", "flash_bytes"]),
    )
)
def test_a_target_written_as_toml_is_read_back_unchanged(target):
    tables = ("limits", "remote", "mcu", "rules")
    values = {k: v for k, v in msgspec.to_builtins(target).items() if k not in tables}
    lines = (f"{key} = {toml_value(value)}" for key, value in values.items())
    assert shipped.decode("\n".join(lines), TargetProfile, "my.toml") == target


def toml_value(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_refused_with_the_known_ones(kind):
    with pytest.raises(UserError) as error:
        shipped.read(kind, "no-such-name")
    assert "'no-such-name'" in str(error.value)
    assert all(name in str(error.value) for name in shipped.names(kind))


def test_a_misspelt_name_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="unknown target 'hots': did you mean 'host'"):
        shipped.load_target("hots")


@pytest.mark.parametrize("name", ["../targets/host", "", ".", "/", "host\0"])
def test_a_name_never_reaches_outside_the_built_in_folder(name):
    with pytest.raises(UserError, match="unknown target"):
        shipped.load_target(name)


def test_the_table_of_published_networks_is_no_search_space():
    assert shipped.ARCHITECTURES not in shipped.names("spaces")


def test_a_file_that_is_missing_a_folder_or_not_text_is_refused_by_its_path(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"name = \xff")
    for name, reason in [
        ("missing", "no such file"),
        ("folder", "cannot read"),
        ("binary", "not a UTF-8 text file"),
    ]:
        path = str(tmp_path / f"{name}.toml")
        with pytest.raises(UserError, match=reason) as error:
            shipped.load_target(path)
        assert path in str(error.value)


def test_a_syntax_error_names_the_file_and_the_line():
    text = message('name = "x"\nthreads == 2\n')
    assert text.startswith("my.toml is not valid TOML") and "line 2" in text


@pytest.mark.parametrize(
    "change, expected",
    [
        (("threads", "thread"), "unknown key 'thread': did you mean 'threads'?"),
        (("runtime", "#"), "missing key 'runtime', expected one of 'mcu', 'onnxruntime'"),
        (("threads = 1", "threads = 1.5"), "key 'threads': expected `int`, found 1.5"),
        (("threads = 1", "threads = -1"), "key 'threads': expected `int` >= 0, found -1"),
        (
            ('"onnxruntime"', '"ort"'),
            "key 'runtime': expected one of 'mcu', 'onnxruntime', found 'ort'",
        ),
    ],
)
def test_a_wrong_key_is_named_with_what_was_found_and_what_is_allowed(change, expected):
    assert HOST.count(change[0]) >= 1
    assert message(HOST.replace(*change)).startswith(f"my.toml: {expected}")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("inner.count = 'a'", "key 'inner.count': expected `int`, found 'a'"),
        ("inner = 3", "key 'inner': expected a table, found 3"),
        ("inner.cuont = 3", "unknown key 'inner.cuont': did you mean 'count'? known: count"),
        ("pairs = [1]", "key 'pairs': expected `array` of length 2, found [1]"),
        ("pairs = [1, 'a']", "key 'pairs[1]': expected `int`, found 'a'"),
        ("[[rows]]\n[[rows]]\ncount = true", "key 'rows[1].count': expected `int`, found True"),
        ("[[rows]]\ncuont = 3", "unknown key 'rows[0].cuont': did you mean 'count'?"),
        ("table.one.count = 'a'", "key 'table.*.count': expected `int`, found `str`"),
        ("table.one.cuont = 1", "unknown key 'table.*.cuont': did you mean 'count'?"),
        ("pairs = [0, 0]", "a pair of zeros is no pair"),
        (f"inner.count = '{'a' * 99}'", "key 'inner.count': expected `int`, found `str`"),
    ],
)
def test_a_key_inside_tables_and_arrays_is_named_by_its_whole_path(text, expected):
    assert message(text, Outer).startswith(f"my.toml: {expected}")
