import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_bf16_patch.toggles import EnvironmentVariableError, Toggles, canonical

KNOWN = ["one.first", "one.second_thing", "two.first"]


def on(environ, default=True):
    return {name for name in KNOWN if Toggles(environ, KNOWN).decide(name, default)[0]}


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
        Toggles({variable: value}, KNOWN)
    assert variable in str(error.value)
    assert told in str(error.value)


def test_strict_and_the_log_level_are_read():
    toggles = Toggles({"QLORA_BF16_PATCH_STRICT": "ON", "QLORA_BF16_PATCH_LOG": " Info"}, KNOWN)
    assert (toggles.strict, toggles.log_level) == (True, logging.INFO)
    assert (Toggles({}, KNOWN).strict, Toggles({}, KNOWN).log_level) == (False, None)


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
        Toggles(environ, KNOWN)
    except EnvironmentVariableError as error:
        assert "QLORA_BF16_PATCH" in str(error)
