"""Translates PTX, as nvcc writes it for the kernels, to C++ that `ptx_device.h` runs on the threads of `host_cuda.h`.

What it understands: entries without calls; registers, parameters, arrays in shared and local memory; predicates, branches and labels; the scopes of inline assembly;
and the instructions of VALUES, STATEMENTS and FORMS, with exactly the types and modifiers written there. Anything else is an error with its text.
Every line of PTX becomes the same line of C++, so that what is reported at run time names the line of the PTX.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cuda_registers import readable

ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)[^{;]*\{")
ARRAY = re.compile(
    r"\.(?P<space>shared|local)\s+\.align\s+\d+\s+\.[bus](?P<bits>8|16|32|64)\s+(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?\s*;"
)
REGISTERS = re.compile(r"\.reg\s+\.(?P<type>\w+)\s+(?P<name>%?\w+)(?P<many><\d+>)?\s*;")
STATEMENT = re.compile(r"(?P<label>[\w$]+):|(?P<scope>[{}])|(?P<text>[^\s{}][^;]*;)")
INSTRUCTION = re.compile(r"(?:@(?P<guard>!?%\w+)\s+)?(?P<opcode>[a-z][\w.]*)\s*(?P<operands>[^;]*);", re.DOTALL)
OPERAND = re.compile(r"\{[^}]*\}|[^\s,{}][^,{}]*")
ADDRESS = re.compile(r"\[\s*(?P<base>[%\w$]+)\s*(?:\+\s*(?P<offset>-?\d+))?\s*\]")
SYMBOL = re.compile(r"(?P<name>[A-Za-z_$][\w$]*)(?:\+(?P<offset>\d+))?")
SPECIAL_REGISTERS = {
    "%tid.x": "host_cuda::current",
    "%ntid.x": "host_cuda::count",
    "%ctaid.x": "host_cuda::now->number",
    "%nctaid.x": "host_cuda::block_count",
    "%laneid": "lane()",
}
TYPES = {
    "INT": r"(?P<T>[usb](?:8|16|32|64))",
    "ANY": r"(?P<T>[usb](?:8|16|32|64)|f32|pred)",
    "TO": r"(?P<D>[us](?:8|16|32|64))",
}
COMPARISONS = {
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
}
COMPARISONS_OF_FLOATS = {
    **COMPARISONS,
    "ne": "({0} < {1} || {0} > {1})",
    # true where either is no number
    "equ": "!({0} < {1} || {0} > {1})",
    "neu": "{0} != {1}",
    "ltu": "!({0} >= {1})",
    "leu": "!({0} > {1})",
    "gtu": "!({0} <= {1})",
    "geu": "!({0} < {1})",
    "num": "({0} == {0} && {1} == {1})",
    "nan": "({0} != {0} || {1} != {1})",
}
VALUES = {
    # Opcode, with the names of TYPES: the types of the result and of the operands; the result in C++.
    # T is the opcode's own type, U the same without a sign, W one of its sign that is twice as long, D that of TO.
    "mov.ANY": ("U U", "{0}"),
    "selp.ANY": ("U U U pred", "{2} ? {0} : {1}"),
    "cvta.global.u64": ("u64 u64", "{0}"),
    "cvta.to.global.u64": ("u64 u64", "{0}"),
    "cvta.local.u64": ("u64 u64", "{0}"),
    "cvta.to.local.u64": ("u64 u64", "{0}"),
    "cvta.shared.u64": ("u64 u64", "u64(host_cuda::pool) + {0}"),
    "cvta.to.shared.u64": ("u64 u64", "{0} - u64(host_cuda::pool)"),
    # integers
    "cvt.TO.INT": ("D T", "{0}"),
    "add.INT": ("U U U", "{0} + {1}"),
    "sub.INT": ("U U U", "{0} - {1}"),
    "neg.INT": ("U U", "0 - {0}"),
    "mul.lo.INT": ("U U U", "product({0}, {1})"),
    "mul.hi.INT": ("T T T", "high_product({0}, {1})"),
    "mul.wide.INT": ("W T T", "{W}({0}) * {W}({1})"),
    "mad.lo.INT": ("U U U U", "product({0}, {1}) + {2}"),
    "div.INT": ("T T T", "{0} / divisor({1})"),
    "rem.INT": ("T T T", "{0} % divisor({1})"),
    "min.INT": ("T T T", "std::min({0}, {1})"),
    "max.INT": ("T T T", "std::max({0}, {1})"),
    "and.ANY": ("U U U", "{0} & {1}"),
    "or.ANY": ("U U U", "{0} | {1}"),
    "xor.ANY": ("U U U", "{0} ^ {1}"),
    "not.INT": ("U U", "~{0}"),
    "not.pred": ("pred pred", "!{0}"),
    "shl.INT": ("U U u32", "shifted_left({0}, {1})"),
    "shr.INT": ("T T u32", "shifted_right({0}, {1})"),
    "shf.l.wrap.b32": ("u32 u32 u32 u32", "funnel_left({0}, {1}, {2})"),
    "bfe.u32": ("u32 u32 u32 u32", "extracted({0}, {1}, {2})"),
    "bfi.b64": ("u64 u64 u64 u32 u32", "inserted({0}, {1}, {2}, {3})"),
    "prmt.b32": ("u32 u32 u32 u32", "permuted({0}, {1}, {2})"),
    "dp2a.lo.u32.u32": ("u32 u32 u32 u32", "dot_of_two({0}, {1}, {2})"),
    "popc.INT": ("u32 U", "device::ones({0})"),
    **{f"setp.{name}.INT": ("pred T T", value) for name, value in COMPARISONS.items()},
    # floats
    "add.rn.f32": ("f32 f32 f32", "{0} + {1}"),
    "sub.rn.f32": ("f32 f32 f32", "{0} - {1}"),
    "mul.rn.f32": ("f32 f32 f32", "{0} * {1}"),
    "div.rn.f32": ("f32 f32 f32", "{0} / {1}"),
    "rcp.rn.f32": ("f32 f32", "1 / {0}"),
    "neg.f32": ("f32 f32", "-{0}"),
    "abs.f32": ("f32 f32", "std::fabs({0})"),
    "min.f32": ("f32 f32 f32", "std::fmin({0}, {1})"),
    "max.f32": ("f32 f32 f32", "std::fmax({0}, {1})"),
    "fma.rn.f32": ("f32 f32 f32 f32", "device::fma({0}, {1}, {2})"),
    "fma.rm.f32": ("f32 f32 f32 f32", "fma_down({0}, {1}, {2})"),
    "ex2.approx.ftz.f32": ("f32 f32", "device::power_of_two({0})"),
    "cvt.sat.f32.f32": ("f32 f32", "saturated({0})"),
    "cvt.rn.f32.INT": ("f32 T", "{0}"),
    "cvt.f32.f16": ("f32 u16", "device::float_of_float16({0})"),
    "cvt.rn.bf16x2.f32": ("u32 f32 f32", "device::pair_of_bfloat16({1}, {0})"),
    "cvt.rn.f16x2.f32": ("u32 f32 f32", "device::pair_of_float16({1}, {0})"),
    **{f"setp.{name}.f32": ("pred f32 f32", value) for name, value in COMPARISONS_OF_FLOATS.items()},
    # collectives
    "vote.sync.ballot.b32": ("u32 pred u32", "ballot({0}, {1})"),
    "match.any.sync.b32": ("u32 u32 u32", "match({0}, {1})"),
    "shfl.sync.idx.b32": ("u32 u32 u32 u32 u32", "shuffle({0}, {1}, {2}, {3})"),
    "shfl.sync.bfly.b32": ("u32 u32 u32 u32 u32", "shuffle({0}, lane() ^ {1}, {2}, {3})"),
}

STATEMENTS = {
    "ret": "return;",
    "exit": "return;",
    "bar.sync 0": "barrier();",
    "bar.warp.sync -1": "device::warp_barrier();",
    "membar.gl": "device::fence();",
    "cp.async.wait_all": "device::wait_for_copies();",
}


class NotUnderstood(ValueError):
    """A statement of PTX that is not translated, with its place and text."""


@dataclass
class Kernel:
    """An entry as far as it was read: what its names stand for."""

    symbols: dict[str, str]
    """Parameters and arrays, each with its address in C++."""
    registers: dict[str, str] = field(default_factory=dict)
    """The type of each: of a class, which is followed by a number, or of one alone."""

    def declared(self, name: str) -> str | None:
        """The type of a register."""
        return self.registers.get(name) or self.registers.get(name.rstrip("0123456789"))

    def read(self, operand: str, kind: str) -> str:
        """A value of a type."""
        if operand.startswith("!"):
            return "!" + self.read(operand[1:], kind)
        if operand in SPECIAL_REGISTERS:
            return f"{kind}({SPECIAL_REGISTERS[operand]})"
        if own := self.declared(operand):
            return converted(variable(operand), own, kind)
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", operand):
            return converted(f"0x{operand[2:]}u", "u32", kind)
        if re.fullmatch(r"-?(?:0x[0-9A-Fa-f]+|\d+)U?", operand):
            return f"{kind}({operand.rstrip('U')}ll)"
        symbol = SYMBOL.fullmatch(operand)
        if symbol is None or symbol["name"] not in self.symbols:
            raise NotUnderstood(operand)
        return f"{kind}({self.symbols[symbol['name']]} + {symbol['offset'] or 0})"

    def write(self, target: str, kind: str, value: str) -> str:
        """The second of `register|predicate` says that the lane which was asked is there, as all of them are."""
        first, _, there = target.partition("|")
        text = f"{variable(there)} = true; " if there else ""
        if first == "_":
            return text
        own = self.declared(first)
        if own is None:
            raise NotUnderstood(target)
        return f"{variable(first)} = {converted(f'({value})', kind, own)}; " + text

    def write_parts(self, target: str, kind: str, values: str) -> str:
        """Of an array that is called so, to the registers of a vector or to one."""
        return "".join(self.write(one, kind, f"{values}[{i}]") for i, one in enumerate(parts_of(target)))

    def read_parts(self, source: str, kind: str) -> str:
        return "{" + ", ".join(self.read(one, kind) for one in parts_of(source)) + "}"

    def address(self, operand: str) -> str:
        found = ADDRESS.fullmatch(operand)
        if found is None:
            raise NotUnderstood(operand)
        return f"{self.read(found['base'], 'u64')} + {found['offset'] or 0}"


def variable(register: str) -> str:
    """Its name in C++, where f32 is a type."""
    return register.lstrip("%") + "_"


def converted(value: str, kind: str, to: str) -> str:
    """What lies in a register of one type as an instruction of another one reads it, or the other way round."""
    if kind == to:
        return value
    if to == "f32":
        return f"device::float_of({value})"
    if kind == "f32":
        return converted(f"device::bits_of({value})", "u32", to)
    return f"{to}({value})" if length(to) <= length(kind) else f"{to}({kind}({value}))"


def length(kind: str) -> int:
    return 1 if kind == "pred" else int(kind[1:])


def parts_of(operand: str) -> list[str]:
    """Of a vector in braces; anything else is its only part."""
    return [part.strip() for part in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


def unsigned(kind: str) -> str:
    return kind if kind == "pred" else "u" + kind[1:]


def move_parts(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    """Between a register and those that hold its parts."""
    target, source = operands
    count, whole = max(len(parts_of(one)) for one in operands), f"u{match['bits']}"
    bits = int(match["bits"]) // count
    if target.startswith("{"):
        parts = ", ".join(f"u{bits}(whole >> {i * bits})" for i in range(count))
        text = f"const {whole} whole = {kernel.read(source, whole)}; const u{bits} parts[] = {{{parts}}}; "
        return text + kernel.write_parts(target, f"u{bits}", "parts")
    parts = kernel.read_parts(source, f"u{bits}")
    joined = " | ".join(f"{whole}(parts[{i}]) << {i * bits}" for i in range(count))
    return f"const u{bits} parts[] = {parts}; {kernel.write(target, whole, joined)}"


def access_of(match: re.Match[str], vector: str) -> str:
    """Template arguments of an access to memory."""
    count = len(parts_of(vector))
    if count != int(match["count"] or 1):
        raise NotUnderstood(vector)
    numbers = match["T"].replace("b", "u")
    return f"Space::{match['space'] or 'generic'}, {numbers if count == 1 else f'std::array<{numbers}, {count}>'}"


def load(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    target, address = operands
    kind = match["T"].replace("b", "u")
    call = f"load<{access_of(match, target)}>({kernel.address(address)})"
    wait = "let_others_go_on(); " if match["volatile"] else ""
    if match["count"]:
        return f"{wait}const auto parts = {call}; {kernel.write_parts(target, kind, 'parts')}"
    return wait + kernel.write(target, kind, call)


def store(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    address, source = operands
    values = kernel.read_parts(source, match["T"].replace("b", "u"))
    return f"store<{access_of(match, source)}>({kernel.address(address)}, {values});"


def add_there(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    target, address, source = operands
    call = f"add_there<Space::{match['space'] or 'generic'}>({kernel.address(address)}, {kernel.read(source, 'u32')})"
    return kernel.write(target, "u32", call)


def multiply(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    target, a, b, c = operands
    text = f"f32 c[4] = {kernel.read_parts(c, 'f32')}; "
    text += f"const u32 a[4] = {kernel.read_parts(a, 'u32')}, b[2] = {kernel.read_parts(b, 'u32')}; "
    text += f"device::multiply(c, a, b, {match['number'].replace('f16', 'float16')}()); "
    return text + kernel.write_parts(target, "f32", "c")


def load_matrices(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    target, address = operands
    name = "load_transposed" if match["transposed"] else "load_matrices"
    text = f"u32 words[4]; device::{name}(words, host_cuda::pool + ({kernel.address(address)})); "
    return text + kernel.write_parts(target, "u32", "words")


def copy_sixteen(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    shared, source, count, here = [*operands, "16"][:4]
    if count != "16":
        raise NotUnderstood(count)
    return f"copy_sixteen({kernel.address(shared)}, {kernel.address(source)}, {kernel.read(here, 'u32')});"


def go(kernel: Kernel, match: re.Match[str], operands: Sequence[str]) -> str:
    (label,) = operands
    return f"goto {label.strip('$')};"


MEMORY = r"(?:\.(?P<space>global|shared|local|param))?(?:\.v(?P<count>[24]))?\.(?P<T>[usb](?:8|16|32|64)|f32)"
FORMS: dict[str, Callable[[Kernel, re.Match[str], Sequence[str]], str]] = {
    r"mov\.b(?P<bits>32|64)": move_parts,
    rf"ld(?P<volatile>\.volatile)?{MEMORY}": load,
    rf"st{MEMORY}": store,
    r"atom(?:\.(?P<space>global|shared))?\.add\.u32": add_there,
    r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(?P<number>bf16|f16)\.(?P=number)\.f32": multiply,
    r"ldmatrix\.sync\.aligned\.m8n8\.x4(?P<transposed>\.trans)?\.shared\.b16": load_matrices,
    r"cp\.async\.cg\.shared\.global": copy_sixteen,
    r"bra(?:\.uni)?": go,
}
"""Instructions with addresses, vectors or labels."""


@functools.cache
def known_value(opcode: str) -> tuple[list[str], str] | None:
    """Of VALUES: the types of the result and of the operands, and the result in C++."""
    for known, (types, text) in VALUES.items():
        pattern = re.sub("|".join(TYPES), lambda name: TYPES[name[0]], known.replace(".", r"\."))
        if match := re.fullmatch(pattern, opcode):
            found = match.groupdict()
            if own := found.get("T"):
                signed = own.replace("b", "u") if own[0] == "b" else own
                wide = f"{signed[0]}{2 * int(signed[1:])}" if signed[1:].isdigit() else ""
                found |= {"T": signed, "U": unsigned(own), "W": wide}
            return [found.get(kind) or kind for kind in types.split()], text.replace("{W}", found.get("W") or "")
    return None


@functools.cache
def known_form(opcode: str) -> tuple[re.Match[str], Callable[[Kernel, re.Match[str], Sequence[str]], str]] | None:
    for pattern, write in FORMS.items():
        if match := re.fullmatch(pattern, opcode):
            return match, write
    return None


def instruction(kernel: Kernel, text: str) -> str:
    """In C++; a ValueError where it is not understood."""
    found = INSTRUCTION.fullmatch(text)
    if found is None:
        raise NotUnderstood(text)
    opcode, operands = found["opcode"], [one.strip() for one in OPERAND.findall(found["operands"])]
    guard = f"if ({kernel.read(found['guard'], 'pred')}) " if found["guard"] else ""
    if written := STATEMENTS.get(" ".join([opcode, *operands])):
        return guard + written
    vectors = any(one.startswith("{") for one in operands)
    if (known := known_value(opcode)) and not vectors:
        (result, *kinds), value = known
        values = [kernel.read(one, kind) for one, kind in zip(operands[1:], kinds, strict=True)]
        return f"{guard}{{ {kernel.write(operands[0], result, value.format(*values))}}}"
    if special := known_form(opcode):
        match, write = special
        return f"{guard}{{ {write(kernel, match, operands)} }}"
    raise NotUnderstood(text)


def statement(kernel: Kernel, text: str, body: str, file: str, line: int) -> str:
    """A declaration or an instruction in C++."""
    if text.startswith(".pragma"):
        return ""
    if found := REGISTERS.fullmatch(text):
        name = found["name"]
        kind = kernel.registers[name] = found["type"].replace("b", "u")
        if not found["many"]:
            return f"{kind} {variable(name)};"
        used = sorted(set(re.findall(rf"{name}(\d+)\b", body)), key=int)
        return f"{kind} {', '.join(f'{variable(name + number)} = POISON<{kind}>' for number in used)};" if used else ""
    if found := ARRAY.fullmatch(text):
        name, size = f"array_{len(kernel.symbols)}", int(found["count"] or 1) * int(found["bits"]) // 8
        if found["space"] == "local":
            kernel.symbols[found["name"]] = f"u64({name})"
            return f"alignas(16) char {name}[{size}]; std::memset({name}, 0xff, sizeof {name});"
        kernel.symbols[found["name"]] = name
        return f'const u32 {name} = shared_array("{name}", "{file}", {line}, {size});'
    return instruction(kernel, text)


def statements(body: str, line: int) -> Iterator[tuple[int, re.Match[str]]]:
    """With the lines where they begin."""
    end = 0
    for found in STATEMENT.finditer(body):
        line += body.count("\n", end, found.start())
        yield line, found
        line += body.count("\n", found.start(), found.end())
        end = found.end()


def end_of_body(text: str, start: int) -> int:
    """Of the brace that closes the one before `start`."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    raise NotUnderstood("an entry without an end")


def translate_entry(text: str, entry: re.Match[str], name: str, file: str, lines: list[str]) -> None:
    """Adds the C++ of a kernel to the lines where its PTX is."""
    end = end_of_body(text, entry.end())
    parameters = re.findall(r"([\w$]+)(?:\[\d+\])?\s*(?:,|$)", entry["parameters"].strip())
    kernel = Kernel({name: f"u64(parameters[{i}])" for i, name in enumerate(parameters)})
    body, first = text[entry.end() : end], text.count("\n", 0, entry.end())
    code = f"kernel_{first}"
    lines[text.count("\n", 0, entry.start())] += f"static void {code}(const char* const* parameters) {{ "
    for array in ARRAY.finditer(text[: text.index(".entry")]):  # of several kernels
        if array["name"] in body:
            lines[first] += statement(kernel, array[0], body, file, first + 1)
    for line, found in statements(body, first):
        try:
            if found["text"]:
                lines[line] += statement(kernel, " ".join(found["text"].split()), body, file, line + 1) + " "
            else:
                lines[line] += found["scope"] or f"{found['label'].strip('$')}: ; "
        except ValueError as error:
            raise NotUnderstood(f"{file}:{line + 1}: not understood: {found['text']}") from error
    lines[text.count("\n", 0, end)] += f'}} const Translation of_{code}{{"{file.partition(".")[0]}:{name}", {code}}}; '


def entries(text: str) -> dict[str, re.Match[str]]:
    """By the readable names of the kernels."""
    found = list(ENTRY.finditer(text))
    return dict(zip(readable([entry["name"] for entry in found]), found, strict=True))


def translate(text: str, file: str, chosen: str = "") -> str:
    """The C++ of the kernels whose names have a match of `chosen`; `file` is how the PTX is called, after the file of kernels."""
    text = re.sub(r"//[^\n]*", "", text)
    lines = [""] * (text.count("\n") + 1)
    for name, entry in entries(text).items():
        if re.search(chosen, name):
            translate_entry(text, entry, name, file, lines)
    start = f'#include "ptx_device.h"\nnamespace ptx {{\nnamespace {{\n#line 1 "{file}"\n'
    return start + "\n".join(lines) + "\n}  // namespace\n}  // namespace ptx\n"
