"""Writes docs/alignment.md: the equations that the code implements, where each stands, which test
holds it.

    python docs/alignment.py [--check]

The equations are listed here. Everything else comes of the code and the tests: that a named class
or function exists, what it says of itself, that a named test exists, what the models of the zoo say
of their recurrence and of where they depart, and the identities of tests/memory/test_collapses.py.
"""

import argparse
import ast
import fnmatch
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import NamedTuple

from miras_jax import zoo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for `tests`, whose cases are looked up


class Equation(NamedTuple):
    """An equation, the code that stands for it and the tests that hold it.

    Attributes:
      number: as the paper counts.
      statement: in the paper's symbols.
      code: names below `miras_jax`, such as `memory.bias.Huber`.
      tests: `file::begin` below `tests`, for the tests whose names begin so; with `[a*, b]` behind
        it for the cases of the file's `CASES` whose names match.
      departs: what is not as printed, and why; empty if nothing.
    """

    number: str
    statement: str
    code: tuple[str, ...]
    tests: tuple[str, ...]
    departs: str = ""


COLLAPSES, CHOICES = "memory/test_collapses.py::test_", "memory/test_choices.py::test_"
LAWS, DEEP, LINEAR = (
    "test_contract.py::test_",
    "golden/test_deep.py::test_",
    "golden/test_linear.py::test_",
)

MIRAS = (
    Equation(
        "4, 5",
        "W_t = W_{t-1} - eta_t grad l(W_{t-1}; k_t, v_t)",
        ("memory.recurrent.token_step", "memory.algorithm.GradientDescent"),
        (
            f"{LAWS}finite_differences",
            f"{COLLAPSES}sgd_of_optax_at_every_token_is_gradient_descent",
        ),
    ),
    Equation(
        "7, Prop. 3.2",
        "W_t = argmin sum_i <W - W_{i-1}, grad l_i> + R(W) / eta, the follow-the-leader view",
        ("memory.retention.Retention.link",),
        (f"{COLLAPSES}bregman_of_the_identity_is_l2",),
        "The state is the dual A of this view, W = link(A); steps and decay depend on the token, "
        "which the proposition does not cover.",
    ),
    Equation(
        "8",
        "M_t = alpha M_{t-1} + v_t k_t^T",
        ("memory.bias.DotProduct",),
        (f"{COLLAPSES}deltanet_with_dot_product_and_unit_step_is_linear_attention",),
        "The loss has no factor 2.",
    ),
    Equation(
        "9",
        "M_t = alpha M_{t-1} - eta_t (M_{t-1} k_t - v_t) k_t^T",
        ("memory.bias.L2", "memory.chunked.chunk_step"),
        (
            f"{LAWS}whole_row_equals_its_tokens",
            f"{COLLAPSES}gated_deltanet_without_decay_is_deltanet",
        ),
        "Printed without the step on the write and with the factor on the wrong side. The loss has "
        "a factor 1/2.",
    ),
    Equation(
        "10, 11",
        "l = |M(k) - v|_p^p, gradient sign(r) |r|^(p-1) k^T",
        ("memory.bias.Lp",),
        (f"{COLLAPSES}lp_with_p_two_is_l2", f"{CHOICES}gradient_is_that_of_the_loss"),
        "The factor p belongs to the step. The absolute value is smoothed, eps = 1e-6 (Remark 5).",
    ),
    Equation(
        "12", "l = |M(k) - v|_1", ("memory.bias.L1",), (f"{COLLAPSES}small_thresholds_are_l1",)
    ),
    Equation(
        "13, 14",
        "Huber by coordinate",
        ("memory.bias.Huber",),
        (
            f"{COLLAPSES}huber_with_a_large_threshold_is_l2",
            f"{CHOICES}gradient_is_that_of_the_loss",
        ),
    ),
    Equation(
        "15",
        "Huber of the norm: r min(1, delta / |r|)",
        ("memory.bias.Huber",),
        (f"{COLLAPSES}huber_with_a_large_threshold_is_l2", f"{CHOICES}huber_clips"),
    ),
    Equation(
        "16",
        "grad l2 if |r| <= delta_t, else delta_t grad l1",
        ("memory.bias.Huber",),
        (f"{COLLAPSES}small_thresholds_are_l1", f"{CHOICES}huber_switch"),
        "Selectable as kind='switch'; it jumps by sqrt(V) at the threshold, so Yaad takes Eq. 15.",
    ),
    Equation(
        "17",
        "max over |e| <= Delta of |M(k) - (v + e)|^2",
        ("memory.bias.Robust",),
        (f"{COLLAPSES}robust_with_radius_zero_is_l2", f"{CHOICES}robust_is_the_worst"),
    ),
    Equation(
        "18",
        "W_t = W_{t-1} g(-zeta_t - eta_t grad), g = (f')^{-1}",
        ("memory.links.FDivergence", "memory.links.ChiSquared"),
        (f"{COLLAPSES}kl_divergence_is_the_kl_link_without_decay", f"{CHOICES}f_divergences"),
        "Once a chunk, to its sum of gradients; zeta keeps the mass of each output's inputs.",
    ),
    Equation(
        "19, 20, 21, 27",
        "W_t = c softmax((1 - lambda_t) log W_{t-1} - eta'_t grad)",
        ("memory.links.KL", "memory.links.KLDivergence"),
        (f"{CHOICES}kl_on_logits_is_the_printed_softmax",),
        "The KL of Eq. 19 is printed with W_t inside for W_{t-1}. The softmax runs over the inputs "
        "of each output; the paper does not say which.",
    ),
    Equation(
        "22",
        "W_t = S_gamma(lambda W_{t-1} - zeta grad)",
        ("memory.links.ElasticNet",),
        (
            f"{CHOICES}soft_threshold_is_the_proximal",
            f"{COLLAPSES}elastic_net_with_threshold_zero_is_l2",
        ),
        "form='proximal'; lambda and zeta are the decay and the step.",
    ),
    Equation(
        "23",
        "A_t = A_{t-1} - eta grad, W_t = S(A_t)",
        ("memory.links.ElasticNet",),
        (f"{CHOICES}elastic_net_kinds", f"{COLLAPSES}elastic_net_with_threshold_zero_is_l2"),
        "form='link'; kind='smooth' is the printed arctan surrogate.",
    ),
    Equation(
        "variant 4, 24",
        "A_t = alpha_t A_{t-1} - eta_t grad, W_t = A_t / |A_t|_q^(q-2)",
        ("memory.links.Lq",),
        (f"{COLLAPSES}lq_with_q_two_is_l2_retention", f"{CHOICES}lq_"),
        "form='norm' is the printed link times |A_0|_q^(q-2), since as printed it has degree -1 at "
        "q = 4; form='dual' is the link that the regulariser implies.",
    ),
    Equation(
        "variant 5",
        "W_t = g(F'(W_{t-1}) - eta grad), g = (F')^{-1}",
        ("memory.links.Bregman", "memory.links.Logit"),
        (f"{COLLAPSES}bregman_of_the_identity_is_l2", f"{CHOICES}logit_link"),
        "Printed with W_t on both sides.",
    ),
    Equation(
        "24, 25",
        "Moneta",
        ("zoo.moneta",),
        (f"{LAWS}whole_row_equals_its_tokens", f"{LAWS}finite_differences"),
        "See moneta under Models.",
    ),
    Equation(
        "26",
        "Yaad",
        ("zoo.yaad",),
        (f"{LAWS}whole_row_equals_its_tokens", f"{LAWS}finite_differences"),
        "See yaad under Models.",
    ),
    Equation(
        "27",
        "Memora",
        ("zoo.memora",),
        (f"{CHOICES}kl_on_logits_is_the_printed_softmax", f"{LAWS}whole_row_equals_its_tokens"),
        "See memora under Models.",
    ),
    Equation(
        "28, 29, section 5.4",
        "chunks of b tokens take their gradients at the last state of the chunk before",
        ("memory.chunked.chunk_step", "memory.coefficients.Coefficients"),
        (f"{LAWS}whole_row_equals_its_tokens", f"{LAWS}splits_anywhere"),
    ),
    Equation(
        "30, 31, 32",
        "the lag token of Memora",
        ("memory.links.KL",),
        (
            f"{CHOICES}kl_on_logits_is_the_printed_softmax",
            f"{CHOICES}kl_is_linear_inside_a_chunk_along_the_mean_of_its_derivative",
        ),
        "Not needed: the state is the logits, whose recurrence is linear. Reads inside a chunk are "
        "linear in them too, along the tangent at uniform weights.",
    ),
    Equation(
        "section 5.3",
        "M(x) = x + LN(W_1 gelu(W_2 x))",
        ("memory.architecture.MLP",),
        (f"{COLLAPSES}one_layer_mlp_without_norm_is_the_matrix_memory",),
        "The paper counts from the output, the layers here from the input.",
    ),
)

OTHERS = (
    Equation(
        "Titans 11-14",
        "S_t = eta_t S_{t-1} - theta_t grad, M_t = (1 - alpha_t) M_{t-1} + S_t",
        ("memory.algorithm.Momentum", "memory.chunk_algorithm.ChunkDescent"),
        (f"{DEEP}[titans*]", f"{COLLAPSES}chunk_descent_at_every_token_is_momentum"),
        "Miras prints the sign of S reversed.",
    ),
    Equation(
        "Titans 21-31",
        "memory as context, as gate, as layer",
        ("nn.titans.MemoryAsContext", "nn.titans.MemoryAsGate", "nn.model.PairOfBlocks"),
        ("nn/test_titans_variants.py::",),
        "Persistent tokens are learned pairs of keys and values, which attention sees and the "
        "memory does not. The gate, which the paper leaves open, is norm(y) * silu(norm(M)). As "
        "context, a token sees what was recalled for the tokens up to itself, at their positions, "
        "with a query of its own projection. As layer, a residual stands round each of the two.",
    ),
    Equation(
        "TTT 4-6",
        "W_t = W_0 - eta sum grad l(W_0; x_s), LN with scale and bias, residual",
        ("memory.architecture.MLP", "memory.algorithm.GradientDescent"),
        (f"{DEEP}[ttt*]", f"{COLLAPSES}lift_of_one_is_plain"),
    ),
    Equation(
        "LaCT",
        "SwiGLU fast weights, Muon, weights on the sphere",
        ("memory.architecture.SwiGLU", "memory.chunk_algorithm.Muon", "memory.links.Sphere"),
        (f"{DEEP}[lact*]",),
    ),
    Equation(
        "Longhorn",
        "eta / (1 + eta |k|^2)",
        ("memory.algorithm.Implicit", "memory.architecture.Entries"),
        (f"{LINEAR}[longhorn*]", f"{CHOICES}implicit_step"),
    ),
    Equation(
        "DeltaProduct",
        "n delta steps a token",
        ("memory.algorithm.SeveralSteps",),
        (f"{LINEAR}[*delta_product*]", f"{COLLAPSES}delta_product_of_two"),
    ),
    Equation(
        "RWKV-7 17",
        "S_t = S_{t-1} (diag(w) - kappa (a kappa)^T) + v k~^T",
        ("memory.algorithm.Removal",),
        (f"{LINEAR}[rwkv7*]", f"{COLLAPSES}rwkv_7_can_be_the_decayed_delta_rule"),
        "Table 1 of Miras multiplies decay and removal; they are added.",
    ),
    Equation(
        "Comba, Gated DeltaNet-2",
        "a residual read at one key and written at another, with gates for either",
        ("memory.algorithm.Decoupled",),
        (
            f"{LINEAR}[comba*, gdn2*]",
            f"{COLLAPSES}comba_that_feeds_its_key_back_is_gated_deltanet",
            f"{COLLAPSES}gated_deltanet_2_with_equal_gates_is_kda",
        ),
    ),
    Equation(
        "MesaNet 6-8",
        "o_t = G_t (H_t + Lambda)^{-1} q_t",
        ("memory.architecture.NormalEquations",),
        (f"{LINEAR}[mesanet*]", f"{CHOICES}normal_equations"),
    ),
)


def resolve(name: str):
    """The object of a name below `miras_jax`.

    Raises:
      AttributeError: there is none.
    """
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["miras_jax", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AttributeError(f"miras_jax has no {name}")


def functions_of(path: Path) -> dict[str, str]:
    """The functions of a file of tests with the first lines of their docstrings."""
    tree = ast.parse(path.read_text())
    return {
        node.name: " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def code_cell(name: str) -> str:
    """A link to the file of a name below `miras_jax`."""
    found = resolve(name)
    module = inspect.getmodule(found)
    path = Path(module.__file__).relative_to(ROOT)
    shown = path.stem if inspect.ismodule(found) else found.__qualname__
    return f"[`{shown}`](../{path})"


def check_cases(file: str, patterns: list[str]) -> None:
    """Checks that each pattern matches a case of a file of tests, whose `CASES` names them all.

    Raises:
      LookupError: one matches none.
    """
    module = importlib.import_module(".".join(["tests", *Path(file).with_suffix("").parts]))
    for pattern in patterns:
        if not fnmatch.filter(module.CASES, pattern):
            raise LookupError(f"tests/{file} has no case {pattern!r} among {module.CASES}")


def test_cells(test: str) -> list[str]:
    """Links to the tests whose names begin as given.

    Raises:
      LookupError: there is none, or no case of that name.
    """
    file, begin = test.split("::")
    begin, _, cases = begin.removesuffix("]").partition("[")
    path = ROOT / "tests" / file
    names = [name for name in functions_of(path) if name.startswith(begin)]
    if not names:
        raise LookupError(f"{path.relative_to(ROOT)} has no test that begins with {begin!r}")
    link = f"../tests/{file}"
    shown = names if len(names) <= 2 else [f"{begin or 'test_'}..."]
    if cases:
        shown = cases.split(", ")
        check_cases(file, shown)
    return [f"[`{name}`]({link})" for name in shown]


def table(equations: tuple[Equation, ...]) -> str:
    """The equations as a table."""
    lines = ["| equation | | code | tests | departs |", "|---|---|---|---|---|"]
    for e in equations:
        code = "<br>".join(code_cell(name) for name in e.code)
        tests = "<br>".join(cell for test in e.tests for cell in test_cells(test))
        statement = e.statement.replace("|", "\\|")
        departs = e.departs.replace("|", "\\|")
        lines.append(f"| {e.number} | {statement} | {code} | {tests} | {departs} |")
    return "\n".join(lines)


def headers() -> dict[str, str]:
    """The docstring of the file that holds each model of the zoo; hybrids share one."""
    modules = [module for module in vars(zoo).values() if inspect.ismodule(module)]
    return {
        row.name: inspect.getdoc(module)
        for module in modules
        for row in getattr(module, "ROWS", [getattr(module, "ROW", None)])
        if row is not None
    }


def departures(header: str) -> str:
    """What a model's header says of where it departs, from the word "Departs" to the end of the
    paragraph, with links to the models that it names; empty if it says nothing.

    Raises:
      LookupError: departures are spoken of in another form.
    """
    found = re.search(r"\bDeparts(:| \().*?(?=\n\n|\Z)", header, re.DOTALL)
    if found is None and "depart" in header.lower():
        raise LookupError(f'write "Departs: ..." in the header that begins {header[:60]!r}')
    text = " ".join(found[0].split()) if found else ""
    names = "|".join(zoo.names())
    return re.sub(rf"`({names})`", r"[`\1`](#\1)", text)


def models() -> str:
    """The models of the zoo: source, recurrence, departures."""
    parts, said = [], headers()
    for row in zoo.table():
        parts.append(f"### {row.name}\n\n{row.source}.\n\n```text\n{row.recurrence.strip()}\n```")
        if departs := departures(said[row.name]):
            parts.append(departs)
    return "\n\n".join(parts)


def collapses() -> str:
    """The identities that are tested, numbered."""
    found = functions_of(ROOT / "tests" / "memory" / "test_collapses.py")
    return "\n".join(
        f"{i}. {name.removeprefix('test_').replace('_', ' ')}: {said}"
        for i, (name, said) in enumerate(found.items(), 1)
    )


def document() -> str:
    """The whole text."""
    return (
        "\n\n".join(
            [
                "# From the papers to the code",
                "The equations that the code implements, each with its place and its tests. "
                "Written by `python docs/alignment.py` from code and tests; not to be edited. "
                "Every memory is held besides by the laws of `tests/laws.py` (all of "
                "`tests/test_contract.py`), and those with third-party reference numbers by "
                "`tests/golden/`.",
                "## Miras, arXiv 2504.13173",
                table(MIRAS),
                "## Its neighbours",
                table(OTHERS),
                "## Collapses",
                "Where one choice at a limit is another, both are run and compared, values and "
                "gradients (`tests/memory/test_collapses.py`).",
                collapses(),
                "## Models",
                models(),
            ]
        )
        + "\n"
    )


def main() -> int:
    """Writes the document, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    path, text = ROOT / "docs" / "alignment.md", document()
    if parser.parse_args().check:
        if path.is_file() and path.read_text() == text:
            return 0
        print("docs/alignment.md is not what the code says: run python docs/alignment.py")
        return 1
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
