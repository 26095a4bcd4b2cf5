#!/usr/bin/env python3
"""Translates one kernel of a PTX module to C and compiles it, for the simulated device.

    translate.py MODULE.ptx KERNEL KERNEL.so

Covers what nvcc makes of Candle's kernels, by NVIDIA's "PTX ISA" reference; what it does not know is an error that names the
instruction. Approximate instructions (ex2.approx, rcp.approx) are computed exactly: their error is the hardware's own.
A kernel that waits, at a barrier or for its warp, becomes a function that returns there and goes on when it is called again.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SPECIAL = {f"%{name}.{axis}": f"{where}[{i}]"
           for name, where in [("tid", "t->tid"), ("ntid", "t->block->ntid"), ("ctaid", "t->block->ctaid"),
                               ("nctaid", "t->block->nctaid")]
           for i, axis in enumerate("xyz")}

C_TYPES = {"f32": "float", "f64": "double", "pred": "uint32_t"}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
ARITHMETIC = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
FLOATS = ("f16", "bf16", "f32", "f64")
UNARY = {"neg": "-{}", "rcp": "1 / {}", "sqrt": "sqrt({})", "rsqrt": "1 / sqrt({})", "ex2": "exp2({})", "lg2": "log2({})"}
# Instructions that one method translates by their names. Every other one has a method do_<name>.
BY_NAME = {"sum": ["add", "sub"], "carried": ["addc", "subc", "madc"], "logical": ["and", "or", "xor"], "divided": ["div", "rem"],
           "shifted": ["shl", "shr"], "extreme": ["min", "max"], "unary": UNARY}
METHODS = {name: method for method, names in BY_NAME.items() for name in names}


def bits(ptx_type):
    if not (match := re.fullmatch(r"(?:[usbf]|bf)(8|16|32|64)", "b32" if ptx_type == "pred" else ptx_type)):
        raise SystemExit(f"error: unknown type '{ptx_type}'")
    return int(match[1])


def field(ptx_type):
    """The member of a register that holds a value of this type."""
    if ptx_type in ("f32", "f64"):
        return ptx_type
    if ptx_type in ("pred", "f16", "bf16") or ptx_type[0] == "b":
        return f"u{bits(ptx_type)}"
    return ptx_type


def c_type(ptx_type):
    if ptx_type in C_TYPES:
        return C_TYPES[ptx_type]
    return f"{'int' if ptx_type[0] == 's' else 'uint'}{bits(ptx_type)}_t"


class Function:
    """A kernel, or a function that one calls: then `returned` is the name of what it gives back."""

    def __init__(self, name, signature, body, module, returned=None):
        self.name, self.module, self.body, self.returned = name, module, body, returned
        self.parameters = re.findall(r"(\w+_param_\d+)", signature)
        self.waits = bool(re.search(r"\b(bar\.sync|shfl\.sync)", body))
        self.resumes = 0
        self.shared, self.shared_bytes = {}, 0
        self.registers, self.arrays = [], []
        self.scopes = []

    # Operands.

    def register(self, name):
        plain = name.lstrip("%")
        scoped = any(plain in scope for scope in self.scopes)
        return plain if scoped or not self.waits else f"s->{plain}"

    def address(self, name):
        """Of a variable, as an integer."""
        if name in self.shared:
            return str(self.shared[name])
        if name in self.module.variables:
            return f"(uint64_t){name}"
        if any(name == array for array, _ in self.arrays):
            return f"(uint64_t){self.register(name)}"
        raise SystemExit(f"error: {self.name}: unknown name '{name}'")

    def value(self, operand, ptx_type):
        """An expression of an operand's value; of 16-bit floats as float."""
        raw = self.raw(operand, ptx_type)
        return {"f16": f"half_to_float({raw})", "bf16": f"bfloat_to_float({raw})"}.get(ptx_type, raw)

    def raw(self, operand, ptx_type):
        operand = operand.strip()
        if operand in SPECIAL:
            return f"(({c_type(ptx_type)}){SPECIAL[operand]})"
        if operand.startswith("!"):
            return f"!{self.raw(operand[1:], ptx_type)}"
        if operand == "WARP_SZ":
            return "32"
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
            return f"((reg){{.u32 = 0x{match[1]}}}).f32"
        if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", operand):
            return f"((reg){{.u64 = 0x{match[1]}}}).f64"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            number = operand.rstrip("U")
            suffix = "ull" if int(number, 0) >= 0 else "ll"
            return f"(({c_type(ptx_type)}){number}{suffix})"
        if operand.startswith("%") or any(operand in scope for scope in self.scopes):
            return f"{self.register(operand)}.{field(ptx_type)}"
        return f"(({c_type(ptx_type)})({self.address(operand)}))"

    def set(self, operand, ptx_type, expression):
        to = {"f16": f"half_of({expression})", "bf16": f"bfloat_of({expression})"}.get(ptx_type, expression)
        return f"{self.register(operand)}.{field(ptx_type)} = {to};"

    def pointer(self, space, operand):
        """What an operand in brackets points at, in C."""
        inner = operand.strip().strip("[]").strip()
        name, _, offset = inner.partition("+")
        offset = offset or "0"
        if space == "param":
            if name in self.parameters:
                place = self.parameters.index(name)
                base = f"(char *)args[{place}]" if self.returned else f"(char *)t->block->params[{place}]"
            else:
                base = "(char *)returned" if name == self.returned else f"(char *){name}"
            return f"({base} + {offset})"
        where = self.raw(name, "u32" if space == "shared" else "u64")
        return f"(t->block->shared + {where} + ({offset}))" if space == "shared" else f"(char *)({where} + ({offset}))"

    # Statements.

    def translate(self):
        lines = ["switch (t->resume) {", "case 0:;"] if self.waits else []
        rest = self.body
        while rest := rest.lstrip():
            if match := re.match(r"(\w+):", rest):
                lines.append(f"{match[1]}:;")
            elif match := re.match(r"\{", rest):
                self.scopes.append(set())
                lines.append("{")
            elif match := re.match(r"\}", rest):
                self.scopes.pop()
                lines.append("}")
            elif match := re.match(r"([^;]*);", rest):
                lines.append(self.statement(" ".join(match[1].split())))
            else:
                raise SystemExit(f"error: {self.name}: no end of '{rest[:60]}'")
            rest = rest[match.end():]
        return lines + (["}"] if self.waits else [])

    def statement(self, text):
        if not text or text.startswith(".pragma"):
            return ""
        if text.startswith("."):
            return self.declaration(text)
        if match := re.match(r"@(!?)(%?\w+)\s+(.*)", text):
            return f"if ({match[1]}{self.raw(match[2], 'pred')}) {{ {self.statement(match[3])} }}"
        code, _, operands = text.partition(" ")
        # Brackets and braces group operands.
        operands = [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,])+", operands)]
        name, *modifiers = code.split(".")
        if method := METHODS.get(name):
            return getattr(self, method)(name, modifiers, operands)
        translate = getattr(self, f"do_{name}", None)
        if translate is None:
            raise SystemExit(f"error: {self.name}: unknown instruction '{text}'")
        return translate(modifiers, operands)

    def declaration(self, text):
        if match := re.match(r"\.reg\s*\.(\w+)\s+(.*)", text):
            names = []
            for name in match[2].split(","):
                name = name.strip()
                if many := re.fullmatch(r"(%\w+)<(\d+)>", name):
                    names += [f"{many[1]}{i}" for i in range(int(many[2]))]
                else:
                    names.append(name)
            plain = [name.lstrip("%") for name in names]
            if self.scopes:
                self.scopes[-1].update(plain)
                return f"reg {', '.join(plain)};"
            self.registers += plain
            return ""
        if match := re.match(r"\.(shared|local|param) (?:\.align (\d+) )?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", text):
            space, align, kind, name, count = match.groups()
            size = bits(kind) // 8 * int(count or 1)
            if space == "param":
                return f"char {name}[{size}];"
            if space == "local":
                self.arrays.append((name, size))
                return ""
            start = -(-self.shared_bytes // int(align or 16)) * int(align or 16)
            self.shared[name] = start
            self.shared_bytes = start + size
            return ""
        raise SystemExit(f"error: {self.name}: unknown declaration '{text}'")

    # Instructions, by name.

    def wait(self, reason):
        self.resumes += 1
        return f"t->resume = {self.resumes}; return {reason}; case {self.resumes}:;"

    def do_bar(self, _, __):
        return self.wait("AT_BARRIER")

    def do_shfl(self, modifiers, operands):
        if modifiers[1] != "bfly":
            raise SystemExit(f"error: {self.name}: unknown shuffle '{modifiers[1]}'")
        to = operands[0].split("|")[0]
        given = f"t->given = {self.raw(operands[1], 'u32')};"
        taken = self.set(to, "u32", f"t->taken[(t->lane ^ {self.raw(operands[2], 'u32')}) & 31]")
        return f"{given} {self.wait('AT_SHUFFLE')} {taken}"

    def do_bra(self, _, operands):
        return f"goto {operands[0]};"

    def do_ret(self, _, __):
        return "return;" if self.returned else "return DONE;"

    def do_call(self, _, operands):
        if "__assertfail" in operands[0]:
            return "return FAILED;"
        returned, name, given = operands
        self.module.wanted.append(name)
        return f"{{ void *given[] = {{{given.strip('()')}}}; {name}(t, {returned.strip('()')}, given); }}"

    def do_ld(self, modifiers, operands):
        ptx_type, space = modifiers[-1], modifiers[0]
        wide = {"u": "u64", "b": "u64", "s": "s64"}.get(ptx_type[0], ptx_type)
        to = operands[0].strip("{}").split(",")
        pointer, kind = self.pointer(space, operands[1]), c_type(ptx_type)
        return " ".join(f"{self.register(r.strip())}.{field(wide)} = (({kind} *){pointer})[{i}];" for i, r in enumerate(to))

    def do_st(self, modifiers, operands):
        ptx_type, space = modifiers[-1], modifiers[0]
        values = operands[1].strip("{}").split(",")
        pointer, kind = self.pointer(space, operands[0]), c_type(ptx_type)
        return " ".join(f"(({kind} *){pointer})[{i}] = {self.raw(v, ptx_type)};" for i, v in enumerate(values))

    def do_atom(self, modifiers, operands):
        if "add" not in modifiers:
            raise SystemExit(f"error: {self.name}: unknown atomic operation '{'.'.join(modifiers)}'")
        ptx_type, pointer = modifiers[-1], self.pointer("global", operands[1])
        # The threads run one after another here.
        size, kind = bits(ptx_type), c_type(ptx_type)
        old, place = self.set(operands[0], f"b{size}", f"*(uint{size}_t *){pointer}"), f"*({kind} *){pointer}"
        total = f"{self.value(operands[0], ptx_type)} + {self.value(operands[2], ptx_type)}"
        total = {"f16": f"half_of({total})", "bf16": f"bfloat_of({total})"}.get(ptx_type, total)
        return f"{old} {place} = {total};"

    def do_mov(self, modifiers, operands):
        ptx_type = modifiers[-1]
        to, of = operands
        if of.startswith("{"):
            parts = of.strip("{}").split(",")
            size = bits(ptx_type) // len(parts)
            packed = " | ".join(f"((uint64_t){self.raw(part, f'u{size}')} << {i * size})" for i, part in enumerate(parts))
            return self.set(to, ptx_type, packed)
        if to.startswith("{"):
            parts = to.strip("{}").split(",")
            size = bits(ptx_type) // len(parts)
            whole = self.raw(of, ptx_type)
            set_part = "{}.u{} = whole >> {};".format
            taken = [set_part(self.register(part.strip()), size, i * size) for i, part in enumerate(parts)]
            return f"{{ uint64_t whole = {whole}; {' '.join(taken)} }}"
        return f"{self.register(to)}.{field(ptx_type)} = {self.raw(of, ptx_type)};"

    def do_cvta(self, _, operands):
        return self.set(operands[0], "u64", self.raw(operands[1], "u64"))

    def do_cvt(self, modifiers, operands):
        to, of = modifiers[-2:]
        value = self.value(operands[1], of)
        rounding = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
        whole = next((rounding[m] for m in modifiers if m in rounding), None)
        if of in FLOATS and whole:
            value = f"{whole}({value})"
        if of in FLOATS and to not in FLOATS:
            limits = f"{'INT' if to[0] == 's' else 'UINT'}{bits(to)}_MAX"
            least = f"(double)INT{bits(to)}_MIN" if to[0] == "s" else "0.0"
            kind = c_type(to)
            value = (f"({{ double v = {value}; isnan(v) ? 0 : v <= {least} ? ({kind}){least} : "
                     f"v >= (double){limits} ? {limits} : ({kind})v; }})")
        if "sat" in modifiers:
            value = f"({{ double v = {value}; v > 0 ? (v < 1 ? v : 1) : 0; }})"
        return self.set(operands[0], to, value if to in FLOATS else f"({c_type(to)}){value}")

    def do_setp(self, modifiers, operands):
        compare, ptx_type = modifiers
        return self.set(operands[0], "pred", self.comparison(compare, ptx_type, *operands[1:]))

    def comparison(self, compare, ptx_type, left, right):
        a, b = self.value(left, ptx_type), self.value(right, ptx_type)
        if ptx_type in FLOATS:
            # Ordered comparisons are false for NaN, unordered ones true.
            if compare == "ne":
                return f"(!isunordered({a}, {b}) && {a} != {b})"
            if compare.endswith("u"):
                return f"(isunordered({a}, {b}) || {a} {COMPARE[compare[:-1]]} {b})"
        return f"({a} {COMPARE[compare]} {b})"

    def do_set(self, modifiers, operands):
        result = self.comparison(modifiers[0], modifiers[-1], operands[1], operands[2])
        to = modifiers[-2]
        return self.set(operands[0], to, f"{result} ? {'1' if to in FLOATS else '-1'} : 0")

    def do_selp(self, modifiers, operands):
        ptx_type = modifiers[-1]
        chosen = f"{self.raw(operands[3], 'pred')} ? {self.raw(operands[1], ptx_type)} : {self.raw(operands[2], ptx_type)}"
        return f"{self.register(operands[0])}.{field(ptx_type)} = {chosen};"

    def binary(self, name, modifiers, operands):
        ptx_type = modifiers[-1]
        if ptx_type == "bf16x2":
            return self.pairs(name, operands)
        a, b = (self.value(operand, ptx_type) for operand in operands[1:3])
        if ptx_type in ("f16", "bf16"):
            a = f"(double){a}"
        expression = f"{a} {ARITHMETIC.get(name, '*')} {b}"
        if "rz" in modifiers:
            expression = self.toward("0", ptx_type, f"(double){a} {ARITHMETIC.get(name, '*')} (double){b}")
        return self.set(operands[0], ptx_type, expression)

    def pairs(self, name, operands):
        halves = []
        for shift in (0, 16):
            a, b = (f"(double)bfloat_to_float({self.raw(o, 'u32')} >> {shift})" for o in operands[1:3])
            halves.append(f"((uint32_t)bfloat_of({a} {ARITHMETIC.get(name, '*')} {b}) << {shift})")
        return self.set(operands[0], "u32", " | ".join(halves))

    @staticmethod
    def toward(where, ptx_type, exact):
        """Rounded toward zero or minus infinity; what doubles hold is taken as exact."""
        if ptx_type != "f32":
            return exact
        beyond = "fabs((double)f) > fabs(d)" if where == "0" else "(double)f > d"
        return f"({{ double d = {exact}; float f = d; {beyond} ? nextafterf(f, {where}) : f; }})"

    def carried(self, name, modifiers, operands):
        """add, sub, mad of 32 bits with a carry that comes in or goes out."""
        a, b = (f"(uint64_t){self.raw(operand, 'u32')}" for operand in operands[1:3])
        into = "carry" if name.endswith("c") else "0"
        if name.startswith("mad"):
            product = f"{a} * {b}"
            product = f"(({product}) >> 32)" if "hi" in modifiers else f"(({product}) & 0xffffffffu)"
            total = f"{product} + (uint64_t){self.raw(operands[3], 'u32')} + {into}"
        else:
            total = f"{a} {'-' if name.startswith('sub') else '+'} {b} {'-' if name.startswith('sub') else '+'} {into}"
        out = "carry = (total >> 32) & 1;" if "cc" in modifiers else ""
        return f"{{ uint64_t total = {total}; {self.set(operands[0], 'u32', '(uint32_t)total')} {out} }}"

    def sum(self, name, modifiers, operands):
        return (self.carried if "cc" in modifiers else self.binary)(name, modifiers, operands)

    def logical(self, name, modifiers, operands):
        if modifiers[-1] == "pred":
            a, b = (f"!!{self.raw(operand, 'pred')}" for operand in operands[1:])
            return self.set(operands[0], "pred", f"{a} {ARITHMETIC[name]} {b}")
        return self.binary(name, modifiers, operands)

    def do_not(self, modifiers, operands):
        sign = "!" if modifiers[-1] == "pred" else "~"
        return self.set(operands[0], modifiers[-1], f"{sign}{self.raw(operands[1], modifiers[-1])}")

    def do_mul(self, modifiers, operands):
        return self.product(modifiers, operands, None)

    def do_mad(self, modifiers, operands):
        if "cc" in modifiers:
            return self.carried("mad", modifiers, operands)
        return self.product(modifiers, operands, operands[3])

    def product(self, modifiers, operands, addend):
        ptx_type = modifiers[-1]
        if ptx_type in FLOATS or ptx_type == "bf16x2":
            return self.binary("mul", modifiers, operands)
        a, b = (self.raw(operand, ptx_type) for operand in operands[1:3])
        size = bits(ptx_type)
        wide = f"{ptx_type[0]}{size * 2}"
        if "wide" in modifiers:
            result, to = f"({c_type(wide)}){a} * {b}", wide
        elif "hi" in modifiers:
            double = "__int128" if ptx_type[0] == "s" else "unsigned __int128"
            result, to = f"({c_type(ptx_type)})((({double}){a} * {b}) >> {size})", ptx_type
        else:
            result, to = f"{a} * {b}", ptx_type
        return self.set(operands[0], to, result if addend is None else f"{result} + {self.raw(addend, to)}")

    def do_fma(self, modifiers, operands):
        ptx_type = modifiers[-1]
        a, b, c = (self.value(operand, ptx_type) for operand in operands[1:])
        if "rm" in modifiers:
            return self.set(operands[0], ptx_type, self.toward("-INFINITY", ptx_type, f"(double){a} * {b} + {c}"))
        return self.set(operands[0], ptx_type, f"{'fmaf' if ptx_type == 'f32' else 'fma'}({a}, {b}, {c})")

    def divided(self, name, modifiers, operands):
        ptx_type, sign = modifiers[-1], {"div": "/", "rem": "%"}[name]
        a, b = (self.value(operand, ptx_type) for operand in operands[1:])
        if ptx_type in FLOATS:
            return self.set(operands[0], ptx_type, f"{a} / {b}")
        return self.set(operands[0], ptx_type, f"{b} ? {a} {sign} {b} : -1")

    def shifted(self, name, modifiers, operands):
        ptx_type, sign = modifiers[-1], {"shl": "<<", "shr": ">>"}[name]
        a, amount, size = self.raw(operands[1], ptx_type), self.raw(operands[2], "u32"), bits(ptx_type)
        beyond = f"{a} >> {size - 1}" if sign == ">>" and ptx_type[0] == "s" else "0"
        return self.set(operands[0], ptx_type, f"{amount} < {size} ? {a} {sign} {amount} : {beyond}")

    def unary(self, name, modifiers, operands):
        ptx_type = modifiers[-1]
        return self.set(operands[0], ptx_type, UNARY[name].format(self.value(operands[1], ptx_type)))

    def do_abs(self, modifiers, operands):
        ptx_type = modifiers[-1]
        absolute = "fabs" if ptx_type in FLOATS else "llabs"
        return self.set(operands[0], ptx_type, f"{absolute}({self.value(operands[1], ptx_type)})")

    def do_clz(self, modifiers, operands):
        value, size = self.raw(operands[1], modifiers[-1]), bits(modifiers[-1])
        return self.set(operands[0], "u32", f"{value} ? __builtin_clzll({value}) - {64 - size} : {size}")

    def do_bfi(self, modifiers, operands):
        ptx_type = modifiers[-1]
        a, b, at, length = (self.raw(o, ptx_type if i < 2 else "u32") for i, o in enumerate(operands[1:]))
        mask = f"(({length} < 64 ? (1ull << {length}) - 1 : -1ull) << {at})"
        return self.set(operands[0], ptx_type, f"({b} & ~{mask}) | (((uint64_t){a} << {at}) & {mask})")

    def do_copysign(self, modifiers, operands):
        return self.set(operands[0], modifiers[-1],
                        f"copysign({self.value(operands[2], modifiers[-1])}, {self.value(operands[1], modifiers[-1])})")

    def extreme(self, name, modifiers, operands):
        ptx_type = modifiers[-1]
        a, b = (self.value(operand, ptx_type) for operand in operands[1:])
        chosen = f"{a} {'<' if name == 'min' else '>'} {b} ? {a} : {b}"
        if ptx_type in FLOATS:
            # Returns the number if one operand is NaN, otherwise NaN.
            unless = f"isnan({a}) ? {a} : isnan({b}) ? {b}" if "NaN" in modifiers else f"isnan({a}) ? {b} : isnan({b}) ? {a}"
            chosen = f"{unless} : {chosen}"
        return self.set(operands[0], ptx_type, chosen)

    # The whole module.

    def c(self):
        lines = self.translate()
        declared = [f"reg {', '.join(self.registers)};"] if self.registers else []
        declared += [f"char {name}[{size}] __attribute__((aligned(16)));" for name, size in self.arrays]
        carry = "uint32_t carry = 0;"
        if self.returned:
            head = f"static void {self.name}(struct thread *t, void *returned, void **args) {{"
            return [head, carry, *declared, *lines, "}"]
        head = ["int run(struct thread *t) {", carry]
        shared = f"const int shared_bytes = {self.shared_bytes};"
        if self.waits:
            state = ["struct state {", *declared, "};", "const int state_bytes = sizeof(struct state);"]
            return [*state, shared, *head, "struct state *s = t->registers;", *lines, "return DONE;", "}"]
        return ["const int state_bytes = 0;", shared, *head, *declared, *lines, "return DONE;", "}"]


class Module:
    def __init__(self, text):
        # C does not allow $ in names.
        text = re.sub(r"//[^\n]*", "", text).replace("$", "_")
        self.text, self.wanted = text, []
        # Variables of the module: tables and texts.
        self.variables = {}
        for kind, name, count, values in re.findall(
                r"\n\.(?:visible )?(?:global|const) \.align \d+ \.(\w+) (\w+)\[(\d+)\](?: = \{([^}]*)\})?;", text):
            self.variables[name] = f"static {c_type(kind)} {name}[{count}] __attribute__((aligned(16))) = {{{values}}};"
        self.dynamic = re.findall(r"\n\.extern \.shared \.align \d+ \.b8 (\w+)\[\];", text)

    def body(self, start):
        depth = 0
        for i in range(start, len(self.text)):
            depth += {"{": 1, "}": -1}.get(self.text[i], 0)
            if depth == 0:
                return self.text[start + 1:i]
        raise SystemExit("error: the module ends within a function")

    def kernel(self, name):
        match = re.search(rf"\.entry {re.escape(name)}\(([^)]*)\)([^{{;]*)\{{", self.text)
        if not match:
            raise SystemExit(f"error: no kernel '{name}' in the module")
        return Function(name, match[1], self.body(match.end() - 1), self)

    def function(self, name):
        match = re.search(rf"\.func\s+(\([^)]*\))\s*{re.escape(name)}\s*(\([^)]*\))\s*\{{", self.text)
        returned = re.search(r"(\w+)(?:\[\d+\])?\)", match[1])[1]
        return Function(name, match[2], self.body(match.end() - 1), self, returned)

    def c(self, name):
        kernel = self.kernel(name)
        # Memory of the launch follows the memory that the kernel declares. No kernel here has both.
        kernel.shared = {dynamic: 0 for dynamic in self.dynamic}
        lines = kernel.c()
        functions = []
        for wanted in dict.fromkeys(self.wanted):
            functions += self.function(wanted).c()
        return ['#include "kernel.h"', '#include <stdlib.h>', *self.variables.values(), *functions, *lines]


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    module, kernel, library = sys.argv[1:]
    lines = Module(Path(module).read_text()).c(kernel)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(library) or ".") as work:
        source, made = Path(work, "kernel.c"), Path(work, "kernel.so")
        source.write_text("\n".join(lines))
        flags = ["-shared", "-fPIC", "-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-w"]
        here = Path(__file__).resolve().parent
        subprocess.run([os.environ.get("CC", "cc"), *flags, f"-I{here}", "-o", made, source, "-lm"], check=True)
        os.replace(made, library)


if __name__ == "__main__":
    main()
