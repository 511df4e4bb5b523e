"""What run/make_corpus.py reads: packages of Debian and of PyPI, with their licences and the files that hold prose."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """
    The documents of one package.

    Args:
        domain (`str`): Says what the documents are about; `HELD_OUT_DOMAINS` are never in the training text.
        package (`str`): Regular expression for the name of a Debian package, of which the newest is taken, or the name
            of a source distribution.
        license (`str`): Of its documents, as the package states it.
        files (`str`): Regular expression that the paths of its documents hold.
        kind (`str`, defaults to `"debian"`): `"debian"` or `"pypi"`.
    """

    domain: str
    package: str
    license: str
    files: str
    kind: str = "debian"


HELD_OUT_DOMAINS = ("prose", "entries")
# No documents, whatever the package: indexes, lists of changes, licences, copies of other pages.
NO_DOCUMENT = (
    r"(?i)(?:^|[/_.-])(?:gen)?index[\w-]*\.|/(?:search|toc|contents?|copying|copyright|licen[cs]e[\w.-]*|gpl|l?gpl[\w.-]*"
    r"|fdl[\w.-]*|gnu-free-documentation-license|changes|changelog[\w.-]*|news|credits|authors|thanks|contributors"
    r"|acknowledg\w+|notes|bookindex|glossary|genindex[\w-]*|py-modindex|.*release.?notes?.*|all|print)\.\w+$"
    r"|/(?:_modules|_static|_sources|api|apidocs?|generated|releases?|releaselog|translations)/"
)

# By domain: package, licence, files, and the kind where it is not debian.
PACKAGES: dict[str, list[tuple[str, ...]]] = {
    "desktop": [
        (r"libreoffice-help-en-us", "MPL-2.0", r"/text/.*\.html$"),
        (r"gimp-help-en", "GFDL-1.2+", r"/help/en/.*\.html$"),
        (r"gnome-user-docs", "CC-BY-SA-3.0", r"/help/C/.*\.page$"),
        (r"claws-mail-doc", "GPL-3+", r"/en/.*\.html$"),
        (r"mh-book", "GPL-2+", r"\.html?$"),
    ],
    "debian": [
        (r"debian-handbook", "CC-BY-SA-3.0 or GPL-2+", r"/en-US/.*\.html$"),
        (r"debian-reference-en", "GPL-2+", r"\.en\.html$"),
        (r"developers-reference", "GPL-2+", r"/developers-reference/[^/]*\.html$"),
        (r"debian-policy", "GPL-2+", r"/policy\.html/[^/]*\.html$"),
        (r"debian-faq", "Debian-FAQ", r"/FAQ/[^/]*\.html$"),
        (r"debian-kernel-handbook", "GPL-2+", r"\.html$"),
        (r"harden-doc", "GPL-2+", r"/en(?:-US)?/.*\.html$"),
        (r"installation-guide-amd64", "GPL-2+", r"/en/.*\.html$"),
        (r"debian-edu-doc-en", "GPL-2+", r"\.html$"),
        (r"freedombox-doc-en", "CC-BY-SA-4.0", r"/manual/en/.*\.html$"),
    ],
    "systems": [
        (r"linux-doc-[\d.]+", "GPL-2", r"/html/.*\.html$"),
        (r"git-doc", "GPL-2", r"\.html$"),
        (r"gitmagic", "GPL-3+", r"/gitmagic/html/[^/]*\.html$"),
        (r"brz-doc", "GPL-2+", r"/html/(?:en|developers)/.*\.html$"),
        (r"apache2-doc", "Apache-2.0", r"/manual/en/.*\.html$"),
        (r"icinga2-doc", "GPL-2+", r"\.md$"),
        (r"shorewall-doc", "GFDL-1.2+", r"/html/.*\.html?$"),
        (r"abs-guide", "public-domain", r"\.html$"),
        (r"nut-doc", "GPL-2+", r"\.html$"),
        (r"borgbackup-doc", "BSD-3-Clause", r"/html/.*\.html$"),
        (r"ntpsec-doc", "NTP and CC-BY-4.0", r"\.html$"),
        (r"pcp-doc", "CC-BY-SA-3.0", r"\.html$"),
        (r"bacula-doc", "CC-BY-SA-4.0", r"\.html$"),
        (r"frr-doc", "FRR-docs", r"/html/.*\.html$"),
        (r"ganeti-doc", "BSD-2-Clause", r"\.html$"),
        (r"nova-doc", "Apache-2.0", r"/html/.*\.html$"),
        (r"neutron-doc", "Apache-2.0", r"/html/.*\.html$"),
        (r"cinder-doc", "Apache-2.0", r"/html/.*\.html$"),
        (r"openvswitch-doc", "Apache-2.0", r"/html/.*\.html$"),
        (r"dpdk-doc", "BSD-3-Clause", r"/guides/.*\.html$"),
        (r"bird2-doc", "GPL-2+", r"\.html$"),
        (r"putty-doc", "MIT", r"\.html$"),
    ],
    "databases": [
        (r"postgresql-doc-\d+", "PostgreSQL", r"/html/.*\.html$"),
        (r"postgis-doc", "CC-BY-SA-3.0", r"\.html$"),
        (r"sqlite3-doc", "public-domain", r"/sqlite3/[^/]*\.html$"),
    ],
    "programming": [
        (r"python3\.\d+-doc", "PSF-2.0", r"/html/.*\.html$"),
        (r"perl-doc", "Artistic or GPL-1+", r"\.pod$"),
        (
            r"rust-web-doc",
            "MIT or Apache-2.0",
            r"/(?:[\w-]*book|nomicon|reference|rustc|rustdoc|[\w-]*guide|error_codes)/.*\.html$",
        ),
        (r"cargo-web-doc", "MIT or Apache-2.0", r"/book/.*\.html$"),
        (r"erlang-doc", "Apache-2.0", r"/erlang-doc/(?!lib/(?:wx|megaco)-).*\.html$"),
        (r"llvm-\d+-doc", "Apache-2.0 with LLVM-exception", r"/html/(?:[^/]*|tutorial/.*|[A-Z]\w*/[^/]*)\.html$"),
        (r"cmake-doc", "BSD-3-Clause", r"/html/.*\.html$"),
        (r"gnu-standards", "GFDL-1.3+", r"\.html$"),
        (r"docutils-doc", "public-domain and BSD-2-Clause", r"\.html$"),
        (r"buildbot-doc", "GPL-2", r"/html/.*\.html$"),
        (r"python-celery-doc", "BSD-3-Clause", r"/html/.*\.html$"),
        (r"systemtap-doc", "GPL-2+", r"\.html$"),
        ("django", "BSD-3-Clause", r"/docs/.*\.txt$", "pypi"),
        (r"python-sqlalchemy-doc", "MIT", r"/html/.*\.html$"),
        ("twisted", "MIT", r"/docs/.*\.rst$", "pypi"),
        ("scrapy", "BSD-3-Clause", r"/docs/.*\.rst$", "pypi"),
        ("pytest", "MIT", r"/doc/en/.*\.rst$", "pypi"),
    ],
    "science": [
        (r"octave-doc", "GPL-3+", r"/octave\.html/.*\.html$"),
        (r"maxima-doc", "GPL-2+", r"/html/[^/]*\.html$"),
        (r"r-doc-html", "GPL-2+", r"\.html$"),
        (r"grass-doc", "GPL-2+", r"/html/.*\.html$"),
        (r"python-dask-doc", "BSD-3-Clause", r"/html/[^/]*\.html$"),
        (r"python-pandas-doc", "BSD-3-Clause", r"/html/(?:user_guide|getting_started)/.*\.html$"),
        (r"python-sklearn-doc", "BSD-3-Clause", r"/(?:modules|tutorial|developers)/[^/]*\.html$"),
        (r"python-scipy-doc", "BSD-3-Clause", r"/html/(?:tutorial|dev)/.*\.html$"),
        ("sympy", "BSD-3-Clause", r"/doc/src/.*\.(?:rst|md)$", "pypi"),
        ("networkx", "BSD-3-Clause", r"/doc/.*\.rst$", "pypi"),
    ],
    "media": [
        (r"lilypond-doc-html", "GFDL-1.3+", r"/Documentation/[^/]*/[^./]*\.html$"),
        (r"csound-doc", "GFDL-1.2+", r"/html/.*\.html$"),
        (r"imagemagick-\d+-doc", "ImageMagick", r"/www/[^/]*\.html$"),
        (r"mplayer-doc", "GPL-2+", r"/en/.*\.html$"),
        (r"ffmpeg-doc", "LGPL-2.1+", r"\.html$"),
        (r"argyll-doc", "AGPL-3", r"\.html$"),
        (r"puredata-doc", "BSD-3-Clause", r"\.html?$"),
    ],
    "prose": [
        (r"anarchism", "GPL-2", r"/html/.*\.html$"),
        (r"sword-comm-tdavid", "public-domain", r"\.[bc]z[sz]$"),
        (r"cfi-en", "public-domain", r"\.html?$"),
    ],
    "entries": [
        (r"dict-foldoc", "GFDL-1.1+", r"/dictd/"),
        (r"dict-jargon", "public-domain", r"/dictd/"),
        (r"dict-devil", "public-domain", r"/dictd/"),
    ],
}
SOURCES = [Source(domain, *row) for domain, rows in PACKAGES.items() for row in rows]

__all__ = ["HELD_OUT_DOMAINS", "NO_DOCUMENT", "SOURCES", "Source"]
