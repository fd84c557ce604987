"""Every file of oracle data is a case of some test, or is named here with the reason."""

from tests.golden import test_deep, test_linear

NOT_COVERED = dict.fromkeys(
    ("log_linear", "log_linear_2", "log_linear_packed"),
    "log-linear attention keeps a matrix for every power of two of the tokens read: a state that "
    "grows, where a memory of this library has a state of constant size",
)


def test_every_file_is_a_case(shared):
    files = sorted(path.stem for path in (shared / "golden").glob("*.npz"))
    assert files == sorted([*test_linear.CASES, *test_deep.CASES, *NOT_COVERED])
