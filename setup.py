"""Build metadata from settings.ini, so that every dependency is written once."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

# The notebooks that the commands run or open travel inside the package.
families = sorted(folder.name for folder in (here / "nbs" / "atlas").glob("[!._]*/"))
kinds = ["course", "reproductions", "benchmarks", "explore", *(f"atlas/{family}" for family in families)]
notebooks = {f"ssl_nb.notebooks.{kind.replace('/', '.')}": f"nbs/{kind}" for kind in kinds if (here / "nbs" / kind).is_dir()}
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}

setup(
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["ssl_nb", "ssl_nb.*"]) + ["ssl_nb.notebooks", "ssl_nb.files", *notebooks],
    package_dir={"ssl_nb.notebooks": "nbs", "ssl_nb.files": "data", **notebooks},
    # The browser's side of the widgets; the data that ship, with the card that states their license.
    package_data={"ssl_nb.explore": ["*.js", "*.css"], "ssl_nb.files": ["*.npz", "*.yml", "*.safetensors", "README.md"],
                  **{name: ["*.ipynb"] for name in notebooks}},
    include_package_data=False,  # or the manifest of the source distribution would add every notebook
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
)
