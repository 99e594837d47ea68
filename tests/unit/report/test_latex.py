"""``table.tex`` of a benchmark."""

from helpers.benchmark_folders import METHODS

from gcp_jax.report import latex


def test_latex_has_a_column_per_task_and_one_for_the_aggregate(partial, whole):
    for page in (partial, whole):
        tex = (page.parent / "table.tex").read_text(encoding="utf-8")
        assert r"\begin{tabular}{lccc}" in tex
        lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 2 + len(METHODS)
        assert all(line.replace(r"\&", "").count("&") == 3 for line in lines)
        assert lines[0] == r"Method & peg\_insert & push\_t & IQM \\"
        assert lines[-1].startswith(r"dp\&po\_\textless{}i\textgreater{} & ")


def test_latex_shows_the_best_of_a_column_in_bold_and_why_a_number_is_missing(partial, whole):
    lines = (whole.parent / "table.tex").read_text(encoding="utf-8").splitlines()
    ogpo, flow, third = (
        next(line for line in lines if line.startswith(name)) for name in ("ogpo", "flow", "dp")
    )
    assert r"\textbf{95.0}" in ogpo
    assert r"\textbf" not in flow
    assert r"\textbf{100.0}" in third
    assert "base policy & 40.0 & 55.0 & 47.5" in "\n".join(lines)
    tex = (partial.parent / "table.tex").read_text(encoding="utf-8")
    assert r" & \emph{failed} & " in tex
    assert r" & \emph{running} & " in tex
    assert "IQM over 1 of 2 tasks" in tex


def test_what_latex_would_read_as_a_command_is_escaped():
    assert latex.escape("a_b%&#${}") == r"a\_b\%\&\#\$\{\}"
    assert latex.escape("\\~^<>") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )
