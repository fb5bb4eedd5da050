# CUDA: the kernels for devices (where nvcc is found), and their emulation (g++ alone).
#
# NANOWEAVE_CUDA                 AUTO | ON | OFF: build the addon with CUDA. AUTO, the default: where
#                                this machine has both a GPU and nvcc, since the kernels take
#                                many minutes to compile
# NANOWEAVE_CUDA_ARCHITECTURES   list of targets, or `all`; default: the GPU of this machine, else
#                                90a-real

set(NANOWEAVE_CUDA AUTO CACHE STRING "Build the addon with CUDA: AUTO, ON or OFF")
set_property(CACHE NANOWEAVE_CUDA PROPERTY STRINGS AUTO ON OFF)

file(GLOB CUDA_KERNELS CONFIGURE_DEPENDS native/ops/*.cu native/cuda/*.cu)
file(GLOB CUDA_HOST_SOURCES CONFIGURE_DEPENDS native/cuda/*.cc native/runtime/cuda/*.cc)
list(FILTER CUDA_HOST_SOURCES EXCLUDE REGEX "/(absent|libraries)\\.cc$")  # libraries.cc: the engine has it
add_library(nanoweave_no_cuda OBJECT EXCLUDE_FROM_ALL native/runtime/cuda/absent.cc)
target_link_libraries(nanoweave_no_cuda PUBLIC nanoweave_engine)
set(NANOWEAVE_GPU_SUPPORT nanoweave_no_cuda)

# ---- Devices ----------------------------------------------------------------------------------

execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                OUTPUT_VARIABLE DETECTED_CAPS ERROR_QUIET RESULT_VARIABLE NVIDIA_SMI_STATUS)
set(NANOWEAVE_DETECTED_ARCHITECTURE "")
if(NVIDIA_SMI_STATUS EQUAL 0 AND DETECTED_CAPS MATCHES "^([0-9]+)\\.([0-9]+)")
  set(NANOWEAVE_DETECTED_ARCHITECTURE ${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real)
  if(NANOWEAVE_DETECTED_ARCHITECTURE STREQUAL "90-real")
    set(NANOWEAVE_DETECTED_ARCHITECTURE 90a-real)
  endif()
endif()

if(NANOWEAVE_CUDA STREQUAL "ON" OR (NANOWEAVE_CUDA STREQUAL "AUTO" AND NANOWEAVE_DETECTED_ARCHITECTURE))
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
  if(NANOWEAVE_CUDA_ARCHITECTURES STREQUAL "all")
    set(NANOWEAVE_CUDA_ARCHITECTURES 80-real 89-real 90a-real)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      list(APPEND NANOWEAVE_CUDA_ARCHITECTURES 100-real 100-virtual)
    else()
      list(APPEND NANOWEAVE_CUDA_ARCHITECTURES 90-virtual)
    endif()
  elseif(NOT NANOWEAVE_CUDA_ARCHITECTURES)
    set(NANOWEAVE_CUDA_ARCHITECTURES 90a-real)
    if(NANOWEAVE_DETECTED_ARCHITECTURE)
      set(NANOWEAVE_CUDA_ARCHITECTURES ${NANOWEAVE_DETECTED_ARCHITECTURE})
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
  string(REPLACE ";" " " ARCHITECTURES_TEXT "${NANOWEAVE_CUDA_ARCHITECTURES}")
  set(CUDA_BUILD_TEXT "${CMAKE_CUDA_COMPILER_VERSION} for ${ARCHITECTURES_TEXT}")
  target_compile_definitions(nanoweave_cuda PRIVATE "NANOWEAVE_CUDA_BUILD=\"${CUDA_BUILD_TEXT}\"")
  target_compile_options(nanoweave_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unused-parameter -fvisibility=hidden>
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-Werror=all-warnings;-Xfatbin=-compress-all;-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-Wno-unknown-pragmas,-fvisibility=hidden>")
  find_library(CUDART_STATIC cudart_static REQUIRED NO_DEFAULT_PATH
               HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
  target_link_libraries(nanoweave_cuda PUBLIC ${CUDART_STATIC} Threads::Threads ${CMAKE_DL_LIBS} rt)
  set(NANOWEAVE_GPU_SUPPORT nanoweave_cuda)
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
file(GLOB EMULATION_SOURCES CONFIGURE_DEPENDS native/cuda/emulation/*.cc)
add_library(nanoweave_emulated_cuda OBJECT EXCLUDE_FROM_ALL ${EMULATED_KERNELS} ${CUDA_HOST_SOURCES}
            ${EMULATION_SOURCES})
target_compile_definitions(nanoweave_emulated_cuda PUBLIC NANOWEAVE_EMULATION
                           PRIVATE "NANOWEAVE_CUDA_BUILD=\"emulated\"")
# Tests compile it often and run it on small shapes.
target_compile_options(nanoweave_emulated_cuda PRIVATE -O1 -Wno-unknown-pragmas -Wno-restrict -Wno-psabi)
target_link_libraries(nanoweave_emulated_cuda PUBLIC nanoweave_engine)

# Kernels against host ops, one op at a time.
file(GLOB CHECK_SOURCES CONFIGURE_DEPENDS native/cuda/check/*.cc)
add_executable(nanoweave_cuda_emulation EXCLUDE_FROM_ALL ${CHECK_SOURCES})
set_target_properties(nanoweave_cuda_emulation PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
target_compile_options(nanoweave_cuda_emulation PRIVATE -Wno-unknown-pragmas -Wno-psabi)
target_link_libraries(nanoweave_cuda_emulation PRIVATE nanoweave_engine nanoweave_emulated_cuda ${CMAKE_DL_LIBS})
# Doubles of NVIDIA's libraries, opened at run time like the real ones.
foreach(LIBRARY nccl cublaslt)
  add_library(nanoweave_${LIBRARY}_double SHARED EXCLUDE_FROM_ALL native/cuda/double/${LIBRARY}.cc)
  target_include_directories(nanoweave_${LIBRARY}_double PRIVATE native)
  set_target_properties(nanoweave_${LIBRARY}_double PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  target_compile_options(nanoweave_${LIBRARY}_double PRIVATE -Wall -Wextra -fvisibility=hidden)
  add_dependencies(nanoweave_cuda_emulation nanoweave_${LIBRARY}_double)
endforeach()
