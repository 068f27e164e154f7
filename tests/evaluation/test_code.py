from pathlib import Path

from medpclip.evaluation import code
from medpclip.evaluation.code import code_sha256


def test_every_change_of_a_part_shows_and_none_elsewhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(code, "_PACKAGE", tmp_path)
    for name in ("models/a.py", "models/deep/b.py", "report.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")

    def now(*parts: str) -> str:
        code_sha256.cache_clear()
        return code_sha256(*parts)

    try:
        part, whole = now("models"), now()
        assert part == now("models") != whole
        (tmp_path / "report.py").write_text("x = 2\n")
        assert now("models") == part and now() != whole
        (tmp_path / "models/deep/b.py").write_text("x = 2\n")
        changed = now("models")
        assert changed != part
        (tmp_path / "models/deep/b.py").rename(tmp_path / "models/deep/c.py")
        assert now("models") not in (part, changed)
    finally:
        code_sha256.cache_clear()
