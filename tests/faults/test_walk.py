"""README.md beside this file names, of each fault, a test that exists."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
CASES = {
    "A": 13,
    "B": 7,
    "C": 5,
    "D": 6,
    "E": 4,
    "F": 7,
    "G": 8,
    "H": 4,
    "I": 6,
    "J": 3,
}


def test_each_fault_names_tests_that_exist():
    text = (Path(__file__).parent / "README.md").read_text()
    rows = re.findall(r"^\| ([A-JP]\d+) \|.*\| (.*) \|$", text, re.MULTILINE)
    ids = [f"{letter}{n + 1}" for letter, many in CASES.items() for n in range(many)]
    assert [name for name, _ in rows] == ids + [f"P{n}" for n in range(1, 21)]
    missing = []
    for name, held in rows:
        file = ""
        for given, test in re.findall(r"`([\w/.]*)::(\w+)`", held):
            file = given or file
            path = TESTS / file
            found = path.is_file() and f"def {test}(" in path.read_text()
            missing += [] if found else [f"{name}: {file}::{test}"]
        assert file, f"{name} names no test"
    assert not missing, missing
