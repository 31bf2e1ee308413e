"""Error lines: one, short, without control characters; faults collected."""

import pytest

from dpo_jax import errors


def test_codes_are_those_of_the_contract():
    codes = {
        "ConfigError": 2,
        "DataError": 3,
        "ModelError": 4,
        "DeviceError": 5,
        "NonFiniteError": 6,
        "WriteError": 7,
        "RunFolderError": 8,
        "UserError": 70,
    }
    assert {name: getattr(errors, name).code for name in codes} == codes
    assert (errors.EXIT_PREEMPTED, errors.EXIT_WATCHDOG) == (75, 124)


def test_one_line_names_the_code_and_joins_lines():
    line = errors.one_line(errors.DataError("a\n  b\tc"))
    assert line == "error[3]: a b c"
    assert errors.one_line(RuntimeError("x")) == "error[70]: x"


@pytest.mark.parametrize("letter", ["x", "é", "漢"])
def test_one_line_is_at_most_a_kilobyte(letter):
    line = errors.one_line(errors.ConfigError(letter * 5000))
    assert 990 <= len(line.encode()) <= errors.MAX_LINE
    assert line.endswith(f"{letter} …")
    short = errors.ConfigError(letter * 300)
    assert errors.one_line(short) == f"error[2]: {letter * 300}"


def test_one_line_carries_no_escape_to_the_terminal():
    line = errors.one_line(errors.DataError("row \x1b[31mred\x1b[0m"))
    assert line == r"error[3]: row \x1b[31mred\x1b[0m"
    bell = errors.one_line(errors.DataError("a\x07b\x9bc"))
    assert bell == r"error[3]: a\x07b\x9bc"


def test_unknown_names_the_nearest_and_all():
    told = errors.unknown("loss.name", "dpoo", ["ipo", "dpo"])
    assert told == "loss.name='dpoo' is not known; did you mean 'dpo'? Known: dpo, ipo"
    far = errors.unknown("loss.name", 7, ["ipo", "dpo"])
    assert far == "loss.name=7 is not known. Known: dpo, ipo"


def test_a_known_name_is_returned_and_another_refused():
    assert errors.known("tier", "quick", {"quick": 1}) == "quick"
    with pytest.raises(errors.ConfigError, match="tier='quik' is not known; did you"):
        errors.known("tier", "quik", {"quick": 1})


def test_collected_raises_once_and_lets_other_errors_pass():
    with pytest.raises(errors.DataError, match="^one · two$") as caught:
        with errors.collected(errors.DataError) as complaints:
            complaints += ["one", "two"]
    assert caught.value.code == 3
    with errors.collected(errors.DataError):
        pass
    with pytest.raises(KeyError), errors.collected(errors.DataError) as complaints:
        complaints.append("one")
        raise KeyError("other")


def test_preempted_names_its_step():
    assert str(errors.Preempted(17)) == "preempted; step 17 committed"
    assert not isinstance(errors.Preempted(17), errors.UserError)
