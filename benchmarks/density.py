"""How densely src is written: tokens on a line of code, the longest functions, habits that pack lines.

A figure to look at, no test enforces it. Run `python benchmarks/density.py`.
"""

from __future__ import annotations

import ast
import tokenize
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_LONG_LINES = 50


def tokens_by_line(path: Path) -> Counter[int]:
    """Line -> number of tokens that start on it; a docstring is one token on its first line."""
    with open(path, encoding="utf-8") as source:
        tokens = list(tokenize.generate_tokens(source.readline))
    return Counter(token.start[0] for token in tokens if token.type not in _NO_CODE)


def is_packed(node: ast.AST) -> bool:
    """Whether an expression only saves lines: a dict literal merged into another, a starred literal."""
    if isinstance(node, ast.Dict):
        inner = [value for key, value in zip(node.keys, node.values) if key is None]
        return any(isinstance(value, ast.Dict) for value in inner)
    return isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple)


def code_lines(node: ast.FunctionDef, tokens: Counter[int]) -> int:
    """Lines of a function that hold code, its docstring aside."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = range(first.lineno, (first.end_lineno or 0) + 1) if documented else range(0)
    lines = range(node.lineno, (node.end_lineno or 0) + 1)
    return sum(line in tokens and line not in docstring for line in lines)


def main() -> None:
    """Print the figures."""
    densities: dict[str, tuple[int, int]] = {}
    long_functions: list[tuple[int, str]] = []
    packed: list[str] = []
    vague: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        tokens = tokens_by_line(path)
        name = path.relative_to(SOURCE).as_posix()
        if not tokens:
            continue
        densities[name] = (sum(tokens.values()), len(tokens))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = code_lines(node, tokens)
                if length > _LONG_LINES:
                    long_functions.append((length, f"{name}: {node.name}"))
            if is_packed(node):
                packed.append(f"{name}:{node.lineno}")
            if (
                isinstance(node, ast.Name)
                and isinstance(node.ctx, ast.Store)
                and node.id == "found"
            ):
                vague.append(f"{name}:{node.lineno}")
    all_tokens = sum(tokens for tokens, _ in densities.values())
    all_lines = sum(lines for _, lines in densities.values())
    print(
        f"{all_lines:,} lines of code in {len(densities)} files, {all_tokens / all_lines:.2f} tokens a line"
    )
    print("densest files:")
    for name, (count, lines) in sorted(
        densities.items(), key=lambda item: -item[1][0] / item[1][1]
    )[:12]:
        print(f"  {count / lines:5.2f}  {name} ({lines} lines)")
    print(f"functions above {_LONG_LINES} lines of code: {len(long_functions)}")
    for length, name in sorted(long_functions, reverse=True):
        print(f"  {length:5}  {name}")
    print(f"literals merged or starred only to save lines: {len(packed)} {', '.join(packed[:10])}")
    print(f"variables named found: {len(vague)} {', '.join(vague[:10])}")


if __name__ == "__main__":
    main()
