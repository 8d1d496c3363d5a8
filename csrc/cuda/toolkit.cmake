# Whether the CUDA module can be built here: with which compiler, for which GPUs, or why not.
# Everything that is asked may hang or lie: it is given its time, and a trial decides.

set(OLDEST_TOOLKIT 12.5)  # mma.sp::ordered_metadata is of PTX 8.5
set(OLDEST_ARCH 80)  # asynchronous copies and bfloat16 start there
set(SECATEURS_PATIENCE 60 CACHE STRING "Seconds for an answer of nvidia-smi or nvcc")
set(SECATEURS_TRIAL_PATIENCE 300 CACHE STRING "Seconds for a small compilation")

# The compiler, its architectures as CMAKE_CUDA_ARCHITECTURES takes them, and "" as the reason why
# there is no CUDA module; or that reason alone.
function(find_toolkit into_compiler into_archs into_reason)
  set(archs "")
  find_compiler(compiler reason)
  if(NOT reason)
    choose_archs(archs reason)
  endif()
  if(NOT reason)
    try_compiler("${compiler}" "${archs}" reason)
  endif()
  set(${into_compiler} "${compiler}" PARENT_SCOPE)
  set(${into_archs} "${archs}" PARENT_SCOPE)
  set(${into_reason} "${reason}" PARENT_SCOPE)
endfunction()

# The nvcc that CMake would take, if it is new enough.
function(find_compiler into into_reason)
  set(compiler "${CMAKE_CUDA_COMPILER}")
  if(NOT compiler AND NOT "$ENV{CUDACXX}" STREQUAL "")
    get_filename_component(compiler "$ENV{CUDACXX}" PROGRAM)
    if(NOT compiler)
      set(${into_reason} "CUDACXX names $ENV{CUDACXX}, which is not there" PARENT_SCOPE)
      return()
    endif()
  elseif(NOT compiler)
    find_program(nvcc nvcc HINTS ENV CUDA_PATH PATH_SUFFIXES bin NO_CACHE)
    if(NOT nvcc)
      set(${into_reason} "no nvcc was found (on PATH, by CUDACXX or under CUDA_PATH)" PARENT_SCOPE)
      return()
    endif()
    set(compiler "${nvcc}")
  endif()
  execute_process(COMMAND "${compiler}" --version TIMEOUT ${SECATEURS_PATIENCE}
    OUTPUT_VARIABLE told ERROR_VARIABLE complained RESULT_VARIABLE status)
  set(reason "")
  if(NOT told MATCHES "release ([0-9]+\\.[0-9]+)")
    first_complaint("${complained}\n${told}" "${status}" complaint)
    set(reason "${compiler} does not tell its version: ${complaint}")
  elseif(CMAKE_MATCH_1 VERSION_LESS OLDEST_TOOLKIT)
    set(reason "${compiler} is of CUDA ${CMAKE_MATCH_1}, the kernels need ${OLDEST_TOOLKIT} or newer")
  endif()
  set(${into} "${compiler}" PARENT_SCOPE)
  set(${into_reason} "${reason}" PARENT_SCOPE)
endfunction()

# SECATEURS_CUDA_ARCHS: "native", "release", or architectures such as "80;90a".
function(choose_archs into into_reason)
  string(REPLACE "," ";" archs "$ENV{SECATEURS_CUDA_ARCHS}")
  set(whose "SECATEURS_CUDA_ARCHS asks for architecture")
  if(archs MATCHES "^(native)?$")
    set(whose "the GPUs of this machine are of architecture")
    ask_gpus(archs)
  elseif(archs STREQUAL "release")
    # PTX of compute_90 is what later generations can still translate (that of 90a is for Hopper alone).
    set(archs 80-real 86-real 89-real 90a-real 100-real 120-real 90-virtual)
  endif()
  set(fit "")
  foreach(arch IN LISTS archs)
    if(NOT arch MATCHES "^([0-9]+)[af]?(-real|-virtual)?$")
      message(FATAL_ERROR "SECATEURS_CUDA_ARCHS must be native, release or architectures such as \"80;90a\", got \"$ENV{SECATEURS_CUDA_ARCHS}\"")
    elseif(CMAKE_MATCH_1 GREATER_EQUAL OLDEST_ARCH)
      list(APPEND fit ${arch})
    endif()
  endforeach()
  set(reason "")
  if(NOT fit)
    string(REPLACE "-real" "" archs "${archs}")
    string(REPLACE ";" " and " archs "${archs}")
    set(reason "${whose} ${archs}, the kernels need ${OLDEST_ARCH} or newer")
  endif()
  set(${into} "${fit}" PARENT_SCOPE)
  set(${into_reason} "${reason}" PARENT_SCOPE)
endfunction()

# The architectures of this machine's GPUs; where none are told of (a build machine), Ampere and Hopper.
function(ask_gpus into)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    TIMEOUT ${SECATEURS_PATIENCE} OUTPUT_VARIABLE told ERROR_QUIET RESULT_VARIABLE status)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" archs "${told}")
  if(NOT status STREQUAL "0" OR NOT archs)
    message(STATUS "nvidia-smi tells of no GPU (${status}): compiling for 80 and 90a")
    set(archs 80 90a)
  endif()
  string(REPLACE "." "" archs "${archs}")
  list(TRANSFORM archs REPLACE "^90$" "90a")
  list(REMOVE_DUPLICATES archs)
  list(TRANSFORM archs APPEND -real)
  set(${into} "${archs}" PARENT_SCOPE)
endfunction()

# Compiles and links what asks most of a toolkit and of its host compiler, for every architecture.
function(try_compiler compiler archs into_reason)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/trial")
  file(WRITE "${folder}/trial.cu" [[
#include "cuda/ptx.cuh"

using namespace secateurs::cuda;

__global__ void trial(float* d, const std::uint32_t* a) {
  float sum[4] = {};
  auto* shared = reinterpret_cast<std::uint32_t*>(ptx::dyn_smem<16>());
  ptx::copy_async16(shared, a, true);
  ptx::commit_copies();
  ptx::wait_copies<0>();
  const std::uint32_t both[4] = {shared[0], shared[1], shared[2], shared[3]};
  ptx::multiply_sparse<ptx::BFloat>(sum, both, both, a[0]);
  *d = ptx::exp2(sum[0]);
}

void run_trial(float* d, const std::uint32_t* a) { trial<<<1, 32, 16>>>(d, a); }
]])
  set(flags "$ENV{CUDAFLAGS} ${CMAKE_CUDA_FLAGS}")
  separate_arguments(flags UNIX_COMMAND "${flags}")
  set(host "${CMAKE_CUDA_HOST_COMPILER}")
  if(NOT host)
    set(host "$ENV{CUDAHOSTCXX}")
  endif()
  if(host)
    list(APPEND flags "-ccbin=${host}")
  endif()
  foreach(arch IN LISTS archs)
    string(REGEX REPLACE "-.*" "" number "${arch}")
    if(arch MATCHES "-real$")
      set(code "sm_${number}")
    elseif(arch MATCHES "-virtual$")
      set(code "compute_${number}")
    else()
      set(code "[compute_${number},sm_${number}]")
    endif()
    list(APPEND flags "--generate-code=arch=compute_${number},code=${code}")
  endforeach()
  get_filename_component(csrc "${CMAKE_CURRENT_FUNCTION_LIST_DIR}" DIRECTORY)
  execute_process(
    COMMAND "${compiler}" -std=c++17 "-I${csrc}" ${flags} -Xcompiler=-fPIC -shared
      "${folder}/trial.cu" -o "${folder}/trial.so"
    TIMEOUT ${SECATEURS_TRIAL_PATIENCE} RESULT_VARIABLE status OUTPUT_VARIABLE told ERROR_VARIABLE complained)
  set(reason "")
  if(NOT status STREQUAL "0")
    first_complaint("${complained}\n${told}" "${status}" complaint)
    set(reason "${compiler} does not compile for ${archs}: ${complaint}")
    string(REPLACE ";" " " reason "${reason}")
  elseif(NOT EXISTS "${folder}/trial.so")
    set(reason "${compiler} compiles, but leaves nothing behind")
  endif()
  set(${into_reason} "${reason}" PARENT_SCOPE)
endfunction()

# The line that tells most of what a program that failed has printed, else its exit status.
function(first_complaint printed status into)
  string(REGEX MATCH "[^\n]*([Ee]rror|fatal|not found|denied)[^\n]*" line "${printed}")
  if(NOT line)
    string(REGEX MATCH "[^\n]*[^ \t\r\n][^\n]*" line "${printed}")
  endif()
  string(STRIP "${line}" line)
  string(SUBSTRING "${line}" 0 300 line)
  if(NOT line)
    set(line "${status}")  # a number, or what the system says of it
    if(line MATCHES "^[0-9]+$")
      set(line "exit status ${line}")
    endif()
  endif()
  set(${into} "${line}" PARENT_SCOPE)
endfunction()
