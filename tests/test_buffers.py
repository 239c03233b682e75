"""What fills a compiled program's memory, from text as the TPU compiler writes it."""

from jaxllm.scaling import buffers

ASSIGNMENT = """BufferAssignment:
allocation 0: size 64, page 0, parameter 0, shape |f32[16]| at ShapeIndex {}, maybe-live-out:
 value: <1 param @0> (size=64,offset=0): f32[16]{0:T(8,128)}
allocation 1: size 4096, page 0, preallocated-temp:
 value: <2 product @0> (size=2048,offset=0): bf16[32,32]{1,0:T(8,128)(2,1)}
 value: <3 earlier @0> (size=1024,offset=512): bf16[16,32]{1,0:T(8,128)(2,1)}
 value: <4 gathered{0} @0> (size=1024,offset=2048): bf16[32,16]{1,0:T(8,128)(2,1)}
 value: <5 copied @0> (size=512,offset=3072): bf16[16,16]{1,0:T(8,128)(2,1)}
allocation 2: size 8192, color 3, page 0, preallocated-temp:
 value: <6 near @0> (size=8192,offset=0): bf16[64,64]{1,0:T(8,128)(2,1)S(3)}
"""

PROGRAM = """HloModule jit_step

FileNames
1 "/home/user/jaxllm/jaxllm/models/mlp.py"
2 "/home/user/jaxllm/jaxllm/models/layers.py"
3 "/home/user/jaxllm/.venv/lib/site-packages/jax/lax.py"
4 "/home/user/jaxllm/jaxllm/sharding/by_hand.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=30 end_line=30 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=94 end_line=94 column=1 end_column=2}
3 {file_name_id=3 function_name_id=1 line=7 end_line=7 column=1 end_column=2}
4 {file_name_id=4 function_name_id=1 line=51 end_line=51 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=1}

ENTRY %main (param: f32[16]) -> bf16[32,32] {
  %param = f32[16]{0} parameter(0)
  %gathered = bf16[32,16] all-gather(%param), metadata={op_name="jit(step)/gather" stack_frame_id=4}
  ROOT %product = bf16[32,32] dot(%param), metadata={op_name="jit(step)/dot" stack_frame_id=3}
}
"""


def test_the_largest_that_share_no_memory_with_the_lines_that_made_them():
    """What lies in the place of a larger one is left out, as is other memory than the device's; a
    helper's caller is named, and a helper where nobody calls it."""
    found = buffers.largest(ASSIGNMENT, PROGRAM)
    assert found == [
        (2048, "bf16[32,32]", "jit(step)/dot", "jaxllm/models/mlp.py:30"),
        (1024, "bf16[32,16]", "jit(step)/gather", "jaxllm/sharding/by_hand.py:51"),
        (512, "bf16[16,16]", "", ""),
    ]
    assert buffers.largest(ASSIGNMENT, PROGRAM, count=1) == found[:1]
