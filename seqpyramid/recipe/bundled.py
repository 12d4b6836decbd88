"""Where the recipes that come with the package lie."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def recipe_files() -> dict[str, Path]:
    """Return the bundled recipes: name -> path, in alphabetical order."""
    inside, beside = PACKAGE / "recipes", PACKAGE.parent / "recipes"  # a wheel, a checkout
    folder = inside if inside.is_dir() else beside
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
