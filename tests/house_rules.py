"""The house rules, read from source with `ast`: who imports whom, and whether README's tree is true.

A rule is a function from a module's name and source to a list of violations.

How things are counted:

- Nesting counts the blocks (if, for, while, try, with, match) around a statement within its function. `elif` and
  `else` are as deep as their `if`, `except` and `finally` as their `try`. A nested function starts again at 0.
- Work at import time is any statement of a module's body that is not an import, a definition, an assignment, a
  docstring, or an `if` on `__name__` or TYPE_CHECKING; and any call in such an assignment that is neither listed in
  `PURE_CALLS` nor makes an object of a class (CapWords). Registering is the exception: environments with gymnasium, and
  handlers of signals with the system where a program of ppo_fast is the command.
- README's tree is its first code block with a line that starts with `ppo_fast/`: two spaces of indent a level, one
  file or folder a line, at least two spaces between its name and its caption; a folder's name ends in `/`:

      ppo_fast/
        train.py           PROGRAM  vector observations
        envs/              one contract in front of every environment
          cartpole.py      CartPole as tensors
      tests/               the same rooms as ppo_fast/

  Every Python file of ppo_fast/ and benchmarks/, `__init__.py` aside, has a line there, and every line there exists. A
  file needs a caption; that of a program starts with PROGRAM.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator

FOLDERS = ("ppo_fast", "benchmarks", "tests")

MAX_NESTING = 3
# Which rooms a room may import, besides itself. Programs, the modules at the top that PROGRAM names, may import all.
ROOMS = {
    "algorithm": set(),
    "envs": set(),
    "pictures": set(),
    "checkup": {"envs"},
    "engine": {"algorithm", "envs"},
    "run": {"algorithm", "envs", "engine", "pictures"},
    "deploy": {"algorithm", "envs", "engine", "run"},
}
PROGRAM = re.compile(r"ppo_fast\.(train(_\w+)?|evaluate|plot|compare|replay|export|doctor)")
LAZY = {"wandb", "matplotlib", "moviepy", "pygame", "scipy", "envpool", "tensorboard"}
PURE_CALLS = {
    *("bool", "dict", "float", "frozenset", "int", "len", "list", "range", "set", "sorted", "str", "tuple", "type"),
    *("re.compile", "dict.fromkeys", "math.log", "math.sqrt", "math.radians", "namedtuple", "timedelta"),
}
REGISTER = re.compile(r"(\w+\.)*_?register(_\w+)?")

Function = ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.With, ast.AsyncWith, ast.Match)
Rule = Callable[[str, str], list[str]]


def is_program(module: str) -> bool:
    """Whether `module` is a program, which nothing in ppo_fast imports."""
    return PROGRAM.fullmatch(module) is not None


def imported(module: str, tree: ast.AST) -> set[str]:
    """Absolute dotted names that `tree` imports, wherever it does; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            names.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names.update(arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    return names


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that `node` imports from, with leading dots resolved; packages are named `a.b.__init__` here."""
    if node.level == 0:
        return node.module or ""
    base = module.split(".")[: -node.level]
    return ".".join([*base, *([node.module] if node.module else [])])


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function in `tree`, methods and nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def room_of(module: str) -> str:
    """The room that a module of ppo_fast stands in; "" for what stands at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def arrows_go_one_way(module: str, source: str) -> list[str]:
    """A room imports only what ROOMS allows. A leaf at the top may be imported by all, and imports nothing of ours."""
    if is_program(module) or module == "ppo_fast.__main__":  # which starts them
        return []
    home = room_of(module)
    allowed = {home, *ROOMS[home]} if home else set()
    found = []
    for name in sorted(ours(module, source)):
        if name == "ppo_fast" or (home and not room_of(name) and not is_program(name)):
            continue  # the package itself, or a leaf at the top
        if module == "ppo_fast.__init__" and name.startswith(("ppo_fast.begin", "ppo_fast.deploy")):
            continue  # the one has to come before all imports that take long; the other is what the package offers
        if room_of(name) not in allowed:
            found.append(f"{module} imports {name}")
    return found


def ours(module: str, source: str) -> set[str]:
    """What a module imports of ppo_fast, with the package's own file named `ppo_fast`."""
    names = {name.removesuffix(".__init__") for name in imported(module, ast.parse(source))}
    return {name for name in names if name == "ppo_fast" or name.startswith("ppo_fast.")}


def circles(files: dict[str, str]) -> list[str]:
    """Imports in a circle, those inside functions too, where `files` are the sources of all modules by name."""
    arrows = {}
    for module, source in files.items():
        own = module.removesuffix(".__init__")
        names = ours(module, source)
        # `from a import b` of a module a.b needs nothing that a's own file defines.
        packages = {name for name in names if any(other.startswith(f"{name}.") and other in files for other in names)}
        arrows[own] = {name for name in names - packages if name in files and name != own}
    found = []
    while arrows:
        free = [module for module, targets in arrows.items() if not targets & arrows.keys()]
        if not free:
            return [f"in a circle: {', '.join(sorted(arrows))}"]
        for module in free:
            del arrows[module]
    return found


def nothing_imports_a_program(module: str, source: str) -> list[str]:
    """Variants repeat the trunk; they never import it."""
    return [f"{module} imports {name}" for name in imported(module, ast.parse(source)) if is_program(name)]


def only_its_twin_imports_wandb(module: str, source: str) -> list[str]:
    """One place knows the tracker."""
    if module == "ppo_fast.run.wandb_twin":
        return []
    names = {name.split(".")[0] for name in imported(module, ast.parse(source))}
    return [f"{module} imports wandb"] if "wandb" in names else []


def heavy_imports_are_lazy(module: str, source: str) -> list[str]:
    """Packages that only some runs need are imported inside the functions that need them."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not isinstance(node, (Function, ast.ClassDef)) and not for_types(node)]
    names = {name.split(".")[0] for name in imported(module, tree)}
    return [f"{module} imports {name} at module level" for name in sorted(names & LAZY)]


def for_types(node: ast.stmt) -> bool:
    """Whether a statement is there for type checkers alone."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def no_global(module: str, source: str) -> list[str]:
    """State is passed, not shared."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Global)]
    return [f"{module}:{node.lineno} global {', '.join(node.names)}" for node in found]


def no_drawer_for_everything(module: str, _source: str) -> list[str]:
    """No utils and no common: a function lives where its subject does."""
    return [f"{module} is a drawer for everything" for part in module.split(".") if part in ("utils", "common")]


def no_work_at_import(module: str, source: str) -> list[str]:
    """Importing a module defines things and does nothing."""
    found = [node for node in ast.parse(source).body if does_work(node)]
    return [f"{module}:{node.lineno} works at import: {ast.unparse(node)[:60]}" for node in found]


def does_work(node: ast.stmt) -> bool:
    """Whether a statement of a module's body does more than define something."""
    if isinstance(node, (ast.Import, ast.ImportFrom, Function, ast.ClassDef)):
        return False
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return any(not is_pure(call) for call in ast.walk(node) if isinstance(call, ast.Call))
    if isinstance(node, ast.If):
        return not re.match(r"__name__ == '__main__'|(typing\.)?TYPE_CHECKING", ast.unparse(node.test))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return not REGISTER.fullmatch(ast.unparse(node.value.func))
    return not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def is_pure(call: ast.Call) -> bool:
    """Whether a call may stand in a module's assignment."""
    name = ast.unparse(call.func)
    return name in PURE_CALLS or name.split(".")[-1][:1].isupper()


def nesting_is_shallow(module: str, source: str) -> list[str]:
    """No statement stands deeper than a reader can hold."""
    depths = {node: depth(node.body) for node in functions(ast.parse(source))}
    return [f"{module}.{node.name} nests {found} deep" for node, found in depths.items() if found > MAX_NESTING]


def depth(body: list[ast.stmt]) -> int:
    """The most blocks around any statement of `body`."""
    return max((1 + max(map(depth, bodies(node))) for node in body if isinstance(node, BLOCKS)), default=0)


def bodies(node: ast.stmt) -> list[list[ast.stmt]]:
    """The bodies of a block. An `elif` is an If in its parent's orelse that starts in its parent's column."""
    if isinstance(node, ast.If) and len(node.orelse) == 1:
        inner = node.orelse[0]
        if isinstance(inner, ast.If) and inner.col_offset == node.col_offset:
            return [node.body, *bodies(inner)]
    parts = [*getattr(node, "handlers", []), *getattr(node, "cases", [])]
    own = [getattr(node, field, []) for field in ("body", "orelse", "finalbody")]
    return [*own, *(part.body for part in parts)]


def public_things_say_what_they_are(module: str, source: str) -> list[str]:
    """Modules, public functions and classes have docstrings, and so have the public methods of a class without bases.

    A class with bases may override what is documented there.
    """
    tree = ast.parse(source)
    public: list[tuple[str, ast.Module | Function | ast.ClassDef]] = [(module, tree), *public_members(module, tree)]
    return [f"{name} has no docstring" for name, node in public if not ast.get_docstring(node)]


def public_members(owner: str, tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """The public functions and classes in `tree`, and the methods of its classes without bases; no setters."""
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if any(decorator.endswith((".setter", "overload")) for decorator in decorators):
            continue
        yield f"{owner}.{node.name}", node
        if isinstance(node, ast.ClassDef) and not node.bases:
            yield from public_members(f"{owner}.{node.name}", node)


def readme_tree(readme: str) -> dict[str, str]:
    """Path to caption for each line of README's tree, folders with a `/` at their end. ValueError without a tree."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    block = next((block for block in blocks if re.search(r"^ppo_fast/", block, flags=re.MULTILINE)), None)
    if block is None:
        raise ValueError("README.md has no code block with a line that starts with ppo_fast/")
    entries: dict[str, str] = {}
    parents: list[str] = []
    for line in filter(str.strip, block.splitlines()):
        level = (len(line) - len(line.lstrip(" "))) // 2
        name, _, caption = line.strip().partition("  ")
        path = "".join([*parents[:level], name])
        if path in entries:
            raise ValueError(f"README.md lists {path} twice")
        entries[path] = caption.strip()
        if name.endswith("/"):
            parents = [*parents[:level], name]
    return entries


def tree_violations(readme: str, files: set[str], folders: set[str]) -> list[str]:
    """What is wrong with README's tree where `files` and `folders` (with a `/` at their end) are the repository's."""
    entries = readme_tree(readme)
    listed = {path for path in files if path.endswith(".py") and not path.endswith("__init__.py")}
    needed = {path for path in listed if path.split("/")[0] in ("ppo_fast", "benchmarks")}
    missing = [f"{path} is not in README's tree" for path in sorted(needed - set(entries))]
    gone = [f"README's tree lists {path}, which is not there" for path in entries if path not in files | folders]
    mute = [f"{path} has no caption" for path, caption in entries.items() if not caption and not path.endswith("/")]
    return missing + gone + mute + wrong_kinds(entries)


def wrong_kinds(entries: dict[str, str]) -> list[str]:
    """Files right below ppo_fast/ that are a program and not called one, or the reverse."""
    found = []
    for path, caption in entries.items():
        if re.fullmatch(r"ppo_fast/[^/]+\.py", path):
            module = path.removesuffix(".py").replace("/", ".")
            if caption.startswith("PROGRAM") != is_program(module):
                found.append(f"README's tree calls {path} '{caption}'")
    return found


def uncommented_dependencies(pyproject: str) -> list[str]:
    """Dependencies in pyproject.toml, extras included, without a comment on their line or right above it."""
    project = tomllib.loads(pyproject)["project"]
    groups = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
    lines = ["", *map(str.strip, pyproject.splitlines())]
    found = []
    for dependency in (name for group in groups for name in group):
        places = [index for index, line in enumerate(lines) if line.startswith(f'"{dependency}"')]
        # A dependency that shares its line with another has no comment of its own either.
        if not places or not all("#" in lines[index] or lines[index - 1].startswith("#") for index in places):
            found.append(f"{dependency} has no comment")
    return found
