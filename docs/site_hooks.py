"""What mkdocs must know of the repository around the pages: the pictures and figures of the benchmarks.

Pages name them where they lie, `../benchmarks/results/NAME`, so that they show on GitHub too; the site has copies.
"""

from pathlib import Path

from mkdocs.structure.files import File


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
COPIES = "results_of_benchmarks"


def on_files(files, config):
    """Adds them to the site."""
    for path in sorted(RESULTS.iterdir()):
        files.append(File.generated(config, f"{COPIES}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, **_):
    """Lets pages name the copies."""
    return markdown.replace("](../benchmarks/results/", f"]({COPIES}/")
