"""PEP 517 backend: setuptools, plus this project's one cffi module and a complete sdist.

setuptools reads `cffi_modules` and `py_limited_api` from a `setup()` call only,
and the house has no `setup.py`. Without one, setuptools runs a stub that calls
`setuptools.setup()`; so the keywords are bound to that function here, before the
hooks of `setuptools.build_meta` are handed on to the front end unchanged.

Left alone, setuptools would put a part of the tests into the sdist, and none of the documents
that README names.
"""

from __future__ import annotations

from functools import partial

import setuptools
from setuptools.command.sdist import sdist


class Sdist(sdist):
    """The source distribution: what it takes to build, and the documents; tests stay behind."""

    def prune_file_list(self) -> None:
        """Decide on the files, after setuptools has chosen."""
        super().prune_file_list()
        self.filelist.prune("tests")
        self.filelist.extend(["ARCHITECTURE.md", "CHANGELOG.md"])


setuptools.setup = partial(
    setuptools.setup,
    cffi_modules=["cdefs/build_native.py:ffibuilder"],
    cmdclass={"sdist": Sdist},
    # cffi names the file .abi3.so by itself; the wheel's tag has to be asked for.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

from setuptools.build_meta import *  # noqa: E402, F403 - the hooks, after setup() is bound
