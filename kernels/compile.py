"""From the kernels' text to machine code: one object file, with a function `mmref_NAME` for each of FUNCTIONS.

Numba compiles each function to LLVM's intermediate code; the parts are linked and translated once more, as a whole, for
the processor of target.py. The object file calls nothing but the C library, so that a later process can load it with
llvmlite alone (program.py): importing Numba and letting it load its own cache would take 0.4 s and 60 MB there.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import compiler, registry
from numba.core.compiler_lock import global_compiler_lock

from mmref.kernels import (
    dense,
    depthwise,
    join,
    matmul,
    nms,
    norm_gate,
    plain,
    pool,
    resize,
    roi_align,
    scan,
    selective_scan,
    squeeze_excite,
    state_scan,
    stem,
    team,
    tokens,
    wavelet_branch,
)
from mmref.kernels.target import CPU_FEATURES, CPU_NAME, TARGET, TRIPLE

KERNELS = (matmul.matmul, stem.stem, stem.picture, stem.result, depthwise.depthwise, depthwise.depthwise_any,
           wavelet_branch.wavelet_branch, scan.scan, norm_gate.norm_gate, join.copy_relu, pool.mean,
           squeeze_excite.gate, selective_scan.scan_states, state_scan.state_scan, plain.move, plain.combine,
           plain.norm, plain.gather, plain.scatter, plain.analysis, plain.synthesis, dense.dense, pool.adaptive_mean,
           pool.maximum_pool, resize.resize, matmul.install_tiles, tokens.path_conv, tokens.rms_norm, tokens.rotary,
           tokens.row_stats, tokens.norm_mean, nms.suppress, roi_align.align)
FUNCTIONS = {**dict.fromkeys(KERNELS, 3), team.walk_alone: 4, team.lead: 5, team.work: 1, team.prepare: 1}  # arguments


def compile_kernels(progress) -> bytes:
    """The object file; `progress()` is called after each of FUNCTIONS."""
    whole = None
    for function, arguments in FUNCTIONS.items():
        part = _compile(function, arguments)
        if whole is None:
            whole = part
        else:
            whole.link_in(part)
        progress()
    whole.verify()
    return target_machine().emit_object(whole)


def target_machine() -> llvm.TargetMachine:
    """LLVM's translator for the processor of target.py, with the settings that code loaded at run time needs."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(TRIPLE).create_target_machine(
        CPU_NAME, CPU_FEATURES, opt=3, reloc="static" if TARGET.is_x86 else "default", codemodel="jitdefault", jit=True)


def _compile(function, arguments) -> llvm.ModuleRef:
    """An LLVM module that exports `function` as void mmref_NAME(int64, ...), and nothing else."""
    flags = compiler.Flags()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True  # nobody calls it from Python here
    flags.error_model = "numpy"
    target = registry.cpu_target
    with global_compiler_lock:
        result = compiler.compile_extra(target.typing_context, target.target_context, function,
                                        [types.int64] * arguments, types.void, flags, {})
        result.library.finalize()  # Numba's own optimisation
    module, plain = llvm.parse_assembly(result.library.get_llvm_str()), result.fndesc.mangled_name
    for defined in (*module.functions, *module.global_variables):
        if not defined.is_declaration and defined.name != plain:
            defined.linkage = "internal"
    module.link_in(llvm.parse_assembly(str(_exporting(f"mmref_{function.__name__}", plain, arguments, module))))
    module.get_function(plain).linkage = "internal"
    return module


def _exporting(name, plain, arguments, like) -> ir.Module:
    """A module with a plain C function: it calls Numba's, and drops the status. Kernels raise nothing."""
    module = ir.Module("mmref")
    module.triple, module.data_layout = like.triple, like.data_layout
    integers, pointer = [ir.IntType(64)] * arguments, ir.IntType(8).as_pointer()
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), integers), name)
    numba_type = ir.FunctionType(ir.IntType(32), [pointer.as_pointer(), pointer.as_pointer(), *integers])
    inner = ir.Function(module, numba_type, plain)
    builder = ir.IRBuilder(outer.append_basic_block())
    builder.call(inner, [builder.alloca(pointer), builder.alloca(pointer), *outer.args])  # result, exception: unused
    builder.ret_void()
    return module
