# HIP with Debian's packages: clang-19, clang-tools-19, lld-19, rocm-device-libs, libamdhip64-dev.
set(CMAKE_HIP_ARCHITECTURES gfx90a gfx942 CACHE STRING "GPUs to compile for")
find_path(MIXLANE_ROCM_BITCODE ocml.bc PATHS /usr/lib/x86_64-linux-gnu/amdgcn/bitcode REQUIRED
          DOC "Folder of ROCm's device libraries")
find_library(MIXLANE_HIP_RUNTIME amdhip64 REQUIRED)

# These device libraries stop at gfx940; gfx942 needs the same constants under its own name.
set(mixlane_bitcode ${CMAKE_BINARY_DIR}/amdgcn/bitcode)
file(COPY ${MIXLANE_ROCM_BITCODE}/ DESTINATION ${mixlane_bitcode})
if(NOT EXISTS ${mixlane_bitcode}/oclc_isa_version_942.bc)
  file(COPY_FILE ${mixlane_bitcode}/oclc_isa_version_940.bc ${mixlane_bitcode}/oclc_isa_version_942.bc)
endif()

# CMake's own HIP language wants a whole ROCm tree, so each file is compiled by a command of ours.
find_program(MIXLANE_HIP_COMPILER NAMES clang++-19 REQUIRED)
function(mixlane_hip_object target file)
  string(MAKE_C_IDENTIFIER "${target}_${file}" name)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
  list(TRANSFORM CMAKE_HIP_ARCHITECTURES PREPEND --offload-arch= OUTPUT_VARIABLE architectures)
  add_custom_command(
    OUTPUT ${object}
    COMMAND
      ${MIXLANE_HIP_COMPILER} -x hip ${architectures} --rocm-device-lib-path=${mixlane_bitcode} -std=c++20 -O3 -fPIC
      -ffp-contract=off -Wall -Wextra -Wshadow -Wno-pass-failed $<$<BOOL:${MIXLANE_WERROR}>:-Werror> -DMIXLANE_HIP -D__HIP_PLATFORM_AMD__
      -I${PROJECT_SOURCE_DIR}/include -I${PROJECT_SOURCE_DIR}/src -MD -MF ${object}.d -c
      ${CMAKE_CURRENT_SOURCE_DIR}/${file} -o ${object}
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file}
    DEPFILE ${object}.d
    COMMENT "HIP ${file}"
    VERBATIM)
  # The target may be another folder's, which a command's output can't reach; an object file that comes from elsewhere can.
  add_custom_target(${name} DEPENDS ${object})
  add_dependencies(${target} ${name})
  set_source_files_properties(${object} TARGET_DIRECTORY ${target} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  target_sources(${target} PRIVATE ${object})
endfunction()
