# CUDA: the kernels for devices (where nvcc is found), and their emulation (g++ alone).
#
# NANOWEAVE_CUDA                 AUTO | ON | OFF: offer the target nanoweave_cuda. OFF by default as
#                                long as no backend links it
# NANOWEAVE_CUDA_ARCHITECTURES   list of targets; default: the GPU of this machine, else 90a-real

set(NANOWEAVE_CUDA OFF CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE NANOWEAVE_CUDA PROPERTY STRINGS AUTO ON OFF)

file(GLOB CUDA_KERNELS CONFIGURE_DEPENDS native/ops/*.cu native/cuda/*.cu)
set(CUDA_HOST_SOURCES native/cuda/step.cc native/cuda/table.cc native/cuda/nccl.cc
    native/cuda/nccl_collectives.cc native/cuda/cublaslt.cc native/cuda/multicast_heap.cc)

# ---- Devices ----------------------------------------------------------------------------------

if(NOT NANOWEAVE_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER)
    find_program(NANOWEAVE_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
    if(NANOWEAVE_NVCC)
      set(CMAKE_CUDA_COMPILER ${NANOWEAVE_NVCC})
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    # For the compiler check alone; targets name their own.
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80)
    endif()
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    # CMake before 3.26 does not know that nvcc 12 has C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(NANOWEAVE_HAS_CUDA ON)
  elseif(NANOWEAVE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "NANOWEAVE_CUDA=ON, but nvcc was not found: set CUDA_HOME to the CUDA toolkit")
  endif()
endif()

if(NANOWEAVE_HAS_CUDA)
  if(NOT NANOWEAVE_CUDA_ARCHITECTURES)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE DETECTED_CAPS ERROR_QUIET RESULT_VARIABLE NVIDIA_SMI_STATUS)
    set(NANOWEAVE_CUDA_ARCHITECTURES 90a-real)
    if(NVIDIA_SMI_STATUS EQUAL 0 AND DETECTED_CAPS MATCHES "^([0-9]+)\\.([0-9]+)")
      set(NANOWEAVE_CUDA_ARCHITECTURES ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real)
      if(NANOWEAVE_CUDA_ARCHITECTURES STREQUAL "90-real")
        set(NANOWEAVE_CUDA_ARCHITECTURES 90a-real)
      endif()
    endif()
  endif()
  file(GLOB CUDART_SOURCES CONFIGURE_DEPENDS native/cuda/cudart/*.cc native/cuda/abi_check/*.cc)
  add_library(nanoweave_cuda OBJECT EXCLUDE_FROM_ALL ${CUDA_KERNELS} ${CUDA_HOST_SOURCES}
              ${CUDART_SOURCES})
  set_target_properties(nanoweave_cuda PROPERTIES CUDA_ARCHITECTURES "${NANOWEAVE_CUDA_ARCHITECTURES}"
                        CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON)
  target_include_directories(nanoweave_cuda PUBLIC native ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  # Kernels for sm_90a have no body elsewhere: they are chosen where they were compiled.
  if(NANOWEAVE_CUDA_ARCHITECTURES MATCHES "90a")
    target_compile_definitions(nanoweave_cuda PRIVATE NANOWEAVE_SM90A)
  endif()
  target_compile_options(nanoweave_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -fvisibility=hidden>
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Werror=all-warnings;-Xfatbin=-compress-all;-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-Wno-unknown-pragmas,-fvisibility=hidden>")
endif()

# ---- Emulation --------------------------------------------------------------------------------

# The kernels' source as C++, each in a translation unit of its own.
set(EMULATED_KERNELS "")
foreach(KERNEL ${CUDA_KERNELS})
  get_filename_component(NAME ${KERNEL} NAME_WE)
  set(WRAPPER ${CMAKE_BINARY_DIR}/emulated/${NAME}.cc)
  file(GENERATE OUTPUT ${WRAPPER} CONTENT "#include \"${KERNEL}\"\n")
  list(APPEND EMULATED_KERNELS ${WRAPPER})
endforeach()
file(GLOB EMULATION_SOURCES CONFIGURE_DEPENDS native/cuda/emulation/*.cc native/cuda/check/*.cc)
add_executable(nanoweave_cuda_emulation EXCLUDE_FROM_ALL ${EMULATED_KERNELS} ${CUDA_HOST_SOURCES}
               ${EMULATION_SOURCES})
# Doubles of NVIDIA's libraries, opened at run time like the real ones.
foreach(LIBRARY nccl cublaslt)
  add_library(nanoweave_${LIBRARY}_double SHARED EXCLUDE_FROM_ALL native/cuda/double/${LIBRARY}.cc)
  target_include_directories(nanoweave_${LIBRARY}_double PRIVATE native)
  target_compile_options(nanoweave_${LIBRARY}_double PRIVATE -Wall -Wextra -fvisibility=hidden)
  add_dependencies(nanoweave_cuda_emulation nanoweave_${LIBRARY}_double)
endforeach()
target_compile_definitions(nanoweave_cuda_emulation PRIVATE NANOWEAVE_EMULATION)
target_compile_options(nanoweave_cuda_emulation PRIVATE -Wno-unknown-pragmas -Wno-restrict -Wno-psabi)
target_link_libraries(nanoweave_cuda_emulation PRIVATE nanoweave_engine)
