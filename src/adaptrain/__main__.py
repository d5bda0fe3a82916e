"""`python -m adaptrain`."""

import os
import sys

if __name__ == "__main__":
    # `python -m` looks for modules in the current folder first. What lies there may be anybody's: a torch.py, or a
    # plug-in of Hydra's. The command `adaptrain` does not look there either. Import nothing of adaptrain before this.
    if sys.path and sys.path[0] in ("", os.getcwd()) and not getattr(sys.flags, "safe_path", False):  # noqa: PTH109
        del sys.path[0]

    from adaptrain.cli.main import main

    sys.exit(main())
