"""What the text of a compiled program says: cycles by kind and layer, loops, collectives, convolutions."""

import pytest

from deeplab_jax.analysis.compiled import Compiled, count_collectives, memory_by_kind, sum_cycles
from deeplab_jax.analysis.program_text import bytes_of, module_path, read_program, result_bytes
from deeplab_jax.analysis.targets import CHIPS

NET = "jit(step)/jvp(Segmenter.coarse_logits)/Segmenter._logits"
BACK = "jit(step)/transpose(jvp(Segmenter.coarse_logits))/Segmenter._logits"
# In the form that XLA for TPUs writes, with little of what it says.
TEXT = f"""HloModule jit_step, is_scheduled=true

FileNames
1 "/code/deeplab_jax/train/step.py"
2 "/code/deeplab_jax/ops/resize.py"
3 "/code/optax/update.py"

FunctionNames
1 "train_step"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=24 end_line=24 column=4 end_column=4}}
2 {{file_name_id=2 function_name_id=1 line=34 end_line=34 column=23 end_column=23}}
3 {{file_name_id=3 function_name_id=1 line=35 end_line=35 column=23 end_column=23}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=1}}
3 {{file_location_id=3 parent_frame_id=1}}

%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}}

%fused (x: bf16[1,5,5,8], k: bf16[3,3,8,16]) -> bf16[1,5,5,16] {{
  %x = bf16[1,5,5,8]{{3,2,1,0:T(8,128)(2,1)}} parameter(0)
  %k = bf16[3,3,8,16]{{3,2,1,0}} parameter(1)
  ROOT %c = bf16[1,5,5,16]{{3,2,1,0}} convolution(%x, %k), window={{size=3x3 pad=6_6x6_6 rhs_dilate=6x6}}, \
dim_labels=b01f_01io->b01f, metadata={{op_name="{NET}/context/branch/conv/jit(convolve)/conv_general_dilated"}}
}}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[], f32[4]) parameter(0)
  %v = f32[4]{{0}} get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=0
  %r = f32[4]{{0}} fusion(%v), kind=kLoop, calls=%sum, metadata={{op_name="jit(step)/dot" stack_frame_id=2}}, \
backend_config={{"window_config":{{"estimated_cycles":"7"}}}}
  ROOT %t = (s32[], f32[4]) tuple(%i, %r)
}}

%condition (p: (s32[], f32[4])) -> pred[] {{
  %n = s32[]{{:T(128)}} constant(5)
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (x: bf16[1,5,5,8], k: bf16[3,3,8,16]) -> f32[4] {{
  %x = bf16[1,5,5,8]{{3,2,1,0}} parameter(0)
  %k = bf16[3,3,8,16]{{3,2,1,0}} parameter(1)
  %f = bf16[1,5,5,16]{{3,2,1,0}} fusion(%x, %k), kind=kOutput, calls=%fused, metadata={{op_name="{NET}/context/\
branch/max"}}, backend_config={{"window_config":{{"estimated_cycles":"100"}}}}
  %g = f32[3,3,8,16]{{3,2,1,0}} convolution(%x, %k), window={{size=5x5}}, metadata={{op_name="{BACK}/backbone/stem/\
conv/jit(convolve)/transpose"}}, backend_config={{"window_config":{{"estimated_cycles":"30"}}}}
  %s = (f32[16]{{0}}, f32[16]{{0}}) all-reduce(%g, %g), replica_groups={{{{0,1}}}}, to_apply=%sum, \
metadata={{op_name="{NET}/backbone/stem/norm/batch/jit(_batch_norm)/reduce_sum"}}
  %h = (f32[2,4]{{1,0}}, f32[8,4]{{1,0}}) all-gather-start(%s), dimensions={{0}}
  %j = f32[8,4]{{1,0}} all-gather-done(%h)
  %b = f32[16]{{0}} fusion(%s), kind=kLoop, calls=%sum, metadata={{op_name="{NET}/backbone/stem/norm/batch/\
jit(_batch_norm)/mul"}}, backend_config={{"window_config":{{"estimated_cycles":"20"}}}}
  %u = f32[16]{{0}} fusion(%s), kind=kLoop, calls=%sum, metadata={{op_name="jit(step)/add" stack_frame_id=3}}, \
backend_config={{"window_config":{{"estimated_cycles":"11"}}}}
  %m = f32[16]{{0}} copy(%u), backend_config={{"window_config":{{"estimated_cycles":"3"}}}}
  %w0 = (s32[], f32[4]) tuple(%m, %m)
  %w = (s32[]{{:T(128)}}, /*index=1*/f32[4]) while(%w0), condition=%condition, body=%body
  ROOT %out = f32[4] get-tuple-element(%w), index=1
}}
"""


def test_cycles_by_kind_and_layer() -> None:
    """100 of a fused convolution, 30 of a gradient, 5 turns of 7 in a loop; each once."""
    text = read_program(TEXT)
    assert sum_cycles(text, text.kind) == {
        "convolutions": 100,
        "resize": 35,
        "convolution gradients": 30,
        "batch norm": 20,
        "update": 11,
        "copies": 3,
    }
    assert sum_cycles(text, text.layer) == {
        "context/branch/conv": 100,
        "resize": 35,
        "backbone/stem/conv": 30,
        "backbone/stem/norm/batch": 20,
        "update": 11,
        "copies": 3,
    }


def test_the_turns_of_a_loop() -> None:
    text = read_program(TEXT)
    (loop,) = [one for one, _ in text.runs if one.opcode == "while"]
    assert text.trips(loop) == 5
    assert [times for one, times in text.runs if one.name == "r"] == [5]
    known = read_program(TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'))
    assert [times for one, times in known.runs if one.name == "r"] == [9]
    unknown = read_program(TEXT.replace("constant(5)", "parameter(1)"))
    assert [times for one, times in unknown.runs if one.name == "r"] == [1]


def test_collectives_are_counted_once_with_the_bytes_of_their_results() -> None:
    """Two sums of 16 float32; a gathered [8, 4], whose type repeats what each device gives."""
    assert count_collectives(read_program(TEXT)) == {
        "all-reduce": {"count": 1, "bytes": 2 * 16 * 4},
        "all-gather": {"count": 1, "bytes": 8 * 4 * 4},
    }


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (f"{NET}/backbone/stem/conv/jit(convolve)/cond/branch_0_fun/conv_general_dilated", "backbone/stem/conv"),
        (f"{BACK}/classifier/mul", "classifier"),
        ("jit(step)/jvp()/while/body/dot_general", ""),
        ("jit(step)/add", ""),
        ("", ""),
    ],
)
def test_the_module_of_a_name(name: str, path: str) -> None:
    assert module_path(name) == path


def test_bytes_of_types() -> None:
    assert bytes_of("(f32[2,3]{1,0:T(8,128)}, bf16[5]{0}, pred[])") == 24 + 10 + 1
    (start,) = [one for one, _ in read_program(TEXT).runs if one.opcode == "all-gather-start"]
    assert result_bytes(start) == 128


class Stats:
    argument_size_in_bytes = 120
    output_size_in_bytes = 90
    alias_size_in_bytes = 80
    temp_size_in_bytes = 50
    generated_code_size_in_bytes = 7


def test_memory_by_kind_adds_up() -> None:
    memory = memory_by_kind(Stats, {"parameters": 60, "batch": 40})
    assert memory == {
        "parameters": 60,
        "batch": 40,
        "padding of arrays": 20,
        "results": 10,
        "temporaries": 50,
        "code": 7,
    }


def test_bounds_of_a_chip() -> None:
    """A second of a v5e: 197e12 operations, 819e9 bytes, 197e12 / 131072 cycles."""
    one = Compiled({"code": 1}, 197e12, 819e9, {}, {"convolutions": 1_502_990_722}, {})
    assert one.bounds(CHIPS["v5e"]) == pytest.approx({"flops": 1, "bytes": 1, "cycles": 1}, rel=1e-6)
    assert set(Compiled({}, 1, 1, {}, {}, {}).bounds(CHIPS["v4"])) == {"flops", "bytes"}
