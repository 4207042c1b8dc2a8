"""The plugin that fails CI when a test was skipped for want of a package."""

from __future__ import annotations

import pytest

pytest_plugins = "pytester"

PASSES = "def test_passes():\n    pass\n"


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    pytester.makepyfile(f"import pytest\n{PASSES}{source}")
    return pytester.runpytest_inprocess("-p", "tests.ci_plugin", "-p", "no:cacheprovider")


@pytest.mark.parametrize(
    "source",
    [
        "def test_oracle():\n    pytest.importorskip('no_such_package')\n",
        "@pytest.mark.skip(reason='cupy is not installed')\ndef test_device():\n    pass\n",
        "@pytest.mark.skipif(True, reason='needs torch')\ndef test_device():\n    pass\n",
        "@pytest.fixture\ndef device():\n    pytest.skip('no fake device')\ndef test_device(device):\n    pass\n",
        "pytest.importorskip('no_such_package')\n",  # the whole module
    ],
)
def test_a_skip_for_want_of_a_package_fails_the_run(pytester, source):
    result = run(pytester, source)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*CI does not forgive it*", "test_a_skip_for_want_of_a_package_fails_the_run.py*"])


@pytest.mark.parametrize("reason", ["../shared/data/squad is not here", "no CUDA GPU: cupy finds none"])
def test_what_ci_cannot_have_is_forgiven(pytester, reason):
    result = run(pytester, f"def test_needs_it():\n    pytest.skip({reason!r})\n")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, skipped=1)


def test_an_expected_failure_is_no_skip(pytester):
    result = run(pytester, "@pytest.mark.xfail\ndef test_known():\n    assert False\n")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1, xfailed=1)


def test_a_failure_stays_a_failure(pytester):
    result = run(pytester, "def test_fails():\n    assert False\n")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)
