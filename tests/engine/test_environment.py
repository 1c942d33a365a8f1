import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_bf16_patch.engine.environment import Environment, EnvironmentVariableError, canonical

KNOWN = ["one.first", "one.second_thing", "two.first"]


def on(environ, default=True):
    return {name for name in KNOWN if Environment(environ, KNOWN).decide(name, default)[0]}


@pytest.mark.parametrize(
    ("main", "enable", "disable", "expected"),
    [
        ("", "", "", set(KNOWN)),
        ("1", "", "", set(KNOWN)),
        (" Yes ", "", "", set(KNOWN)),
        ("0", "one.first", "", set()),
        ("FALSE", "", "", set()),
        ("one.*", "", "", {"one.first", "one.second_thing"}),
        ("One.Second-Thing , two.first", "", "", {"one.second_thing", "two.first"}),
        ("one.first", "two.*", "", {"one.first", "two.first"}),
        ("", "one.*", "*.first", {"one.second_thing"}),
    ],
)
def test_the_variables_say_which_patches_are_on(main, enable, disable, expected):
    environ = {"QLORA_BF16_PATCH": main, "QLORA_BF16_PATCH_ENABLE": enable, "QLORA_BF16_PATCH_DISABLE": disable}
    assert on(environ) == expected


def test_enable_adds_what_is_off_by_default():
    assert on({"QLORA_BF16_PATCH_ENABLE": "two.first"}, default=False) == {"two.first"}


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("QLORA_BF16_PATCH", "of", "off"),
        ("QLORA_BF16_PATCH", " , ", "names nothing"),
        ("QLORA_BF16_PATCH_ENABLE", ",", "names nothing"),
        ("QLORA_BF16_PATCH", "two.frst", "two.first"),
        ("QLORA_BF16_PATCH_ENABLE", "one.first,two.furst", "two.first"),
        ("QLORA_BF16_PATCH_DISABLE", "three.*", "one.first, one.second_thing, two.first"),
        ("QLORA_BF16_PATCH_STRICT", "tru", "true"),
        ("QLORA_BF16_PATCH_LOG", "verbose", "debug, info, warning"),
        ("QLORA_BF16_PATCH_DISABEL", "one.first", "QLORA_BF16_PATCH_DISABLE"),
    ],
)
def test_a_typo_is_an_error_that_names_the_variable_and_suggests(variable, value, told):
    with pytest.raises(EnvironmentVariableError) as error:
        Environment({variable: value}, KNOWN)
    assert variable in str(error.value)
    assert told in str(error.value)


def test_a_variable_that_is_not_ours_is_said_so_in_plain_words():
    with pytest.raises(EnvironmentVariableError) as error:
        Environment({"QLORA_BF16_PATCH_DISABEL": "one.first"}, KNOWN)
    assert str(error.value) == (
        "QLORA_BF16_PATCH_DISABEL is not a variable of qlora_bf16_patch. Known: QLORA_BF16_PATCH, "
        "QLORA_BF16_PATCH_DISABLE, QLORA_BF16_PATCH_ENABLE, QLORA_BF16_PATCH_LOG, QLORA_BF16_PATCH_STRICT. Did you "
        "mean 'QLORA_BF16_PATCH_DISABLE'?"
    )


MOVED = {"Three.Gone": "one.first", "two.gone": "two.first"}


@pytest.mark.parametrize("spelled", ["three.gone", "Three.Gone", "three.*", "*.gone,one.first"])
@pytest.mark.parametrize("variable", ["QLORA_BF16_PATCH", "QLORA_BF16_PATCH_ENABLE", "QLORA_BF16_PATCH_DISABLE"])
def test_the_name_of_a_patch_that_went_elsewhere_says_where(variable, spelled):
    with pytest.raises(EnvironmentVariableError) as error:
        Environment({variable: spelled}, KNOWN, MOVED)
    assert variable in str(error.value)
    assert "'three.gone' is now part of 'one.first'" in str(error.value)


def test_a_glob_that_matches_other_patches_too_is_no_error():
    assert on({"QLORA_BF16_PATCH": "two.*"}) == {"two.first"}
    assert Environment({"QLORA_BF16_PATCH": "two.*"}, KNOWN, MOVED).decide("two.first", False)[0]


NONSENSE = {
    "QLORA_BF16_PATCH_DISABEL": "x",
    "QLORA_BF16_PATCH_ENABLE": ",",
    "QLORA_BF16_PATCH_DISABLE": "three.gone",
    "QLORA_BF16_PATCH_STRICT": "tru",
    "QLORA_BF16_PATCH_LOG": "loud",
}


@pytest.mark.parametrize("off", ["0", "off", "FALSE", " No "])
def test_under_the_kill_switch_nothing_raises_whatever_else_is_set(off):
    names = (1 / 0 for _ in range(1))  # not even the names of the patches are looked at
    environment = Environment({**NONSENSE, "QLORA_BF16_PATCH": off}, names, MOVED)
    assert (environment.killed, environment.strict, environment.log_level) == (True, False, None)
    assert environment.decide("one.first", True) == (False, "environment (QLORA_BF16_PATCH)")


def test_strict_and_the_log_level_are_read():
    environment = Environment({"QLORA_BF16_PATCH_STRICT": "ON", "QLORA_BF16_PATCH_LOG": " Info"}, KNOWN)
    assert (environment.strict, environment.log_level) == (True, logging.INFO)
    assert (Environment({}, KNOWN).strict, Environment({}, KNOWN).log_level) == (False, None)


@given(st.sampled_from(KNOWN), st.text(" \t", max_size=3), st.booleans(), st.booleans())
def test_case_space_and_hyphens_do_not_matter(name, space, upper, hyphen):
    spelled = space + (name.replace("_", "-") if hyphen else name) + space
    assert on({"QLORA_BF16_PATCH": spelled.upper() if upper else spelled}) == {name}


@given(st.text())
def test_canonical_is_idempotent(name):
    assert canonical(canonical(name)) == canonical(name)


@given(st.dictionaries(st.sampled_from(["", "_ENABLE", "_DISABLE", "_STRICT", "_LOG"]), st.text()))
def test_any_text_is_read_or_refused_with_its_variable(values):
    environ = {"QLORA_BF16_PATCH" + suffix: value for suffix, value in values.items()}
    try:
        Environment(environ, KNOWN)
    except EnvironmentVariableError as error:
        assert "QLORA_BF16_PATCH" in str(error)
