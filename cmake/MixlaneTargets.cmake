# What every target of the project is built with.

add_library(mixlane_options INTERFACE)
target_compile_features(mixlane_options INTERFACE cxx_std_20)
# Contraction of a*b+c would make results depend on the instruction set; bitwise equality is a promise. Nobody reads the
# floating-point exception flags, and keeping them exact would keep conditionals from becoming vector code.
set(mixlane_warnings -Wall -Wextra -Wshadow $<$<BOOL:${MIXLANE_WERROR}>:-Werror>)
target_compile_options(
  mixlane_options
  INTERFACE $<$<COMPILE_LANGUAGE:CXX,HIP>:${mixlane_warnings};-ffp-contract=off;-fno-trapping-math>
            $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--expt-relaxed-constexpr;-lineinfo;-Xcompiler=-Wall,-Wextra>)
if(MIXLANE_HIP)
  target_compile_definitions(mixlane_options INTERFACE MIXLANE_HIP __HIP_PLATFORM_AMD__)
endif()
# g++ 12 sees overlapping copies in plain assignments of string literals (GCC bug 105329), and, where <string> is precompiled,
# copies beyond the ends of what is copied.
set(mixlane_no_warnings -Wno-restrict)
if(MIXLANE_PRECOMPILE)
  list(APPEND mixlane_no_warnings -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread)
endif()
target_compile_options(
  mixlane_options INTERFACE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:${mixlane_no_warnings}>)
if(MIXLANE_SANITIZE)
  target_compile_options(mixlane_options INTERFACE -fsanitize=${MIXLANE_SANITIZE} -fno-omit-frame-pointer
                                                   -fno-sanitize-recover=all)
  target_link_options(mixlane_options INTERFACE -fsanitize=${MIXLANE_SANITIZE})
endif()
if(MIXLANE_PORTABLE)
  target_link_options(mixlane_options INTERFACE -static-libstdc++ -static-libgcc)
  add_library(mixlane_fmt ALIAS fmt::fmt-header-only)
else()
  add_library(mixlane_fmt ALIAS fmt::fmt)
endif()

# mixlane_test(NAME SOURCES... [LABELS ...]): one GoogleTest program, its cases found when the tests run.
function(mixlane_test test_name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT" "SOURCES;LABELS;LIBRARIES")
  add_executable(${test_name} ${arg_SOURCES})
  # Tests spend their time in the library; their own loops need no more.
  target_compile_options(${test_name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
  target_link_libraries(${test_name} PRIVATE mixlane_internal mixlane_test_support GTest::gtest_main ${arg_LIBRARIES})
  if(test_name STREQUAL core_tests)
    mixlane_precompile(core_tests <gtest/gtest.h>)
  else()
    mixlane_precompile_as(${test_name} core_tests)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  set(properties TIMEOUT ${arg_TIMEOUT})
  if(arg_LABELS)
    list(APPEND properties LABELS "${arg_LABELS}")
  endif()
  gtest_discover_tests(${test_name} DISCOVERY_MODE PRE_TEST PROPERTIES ${properties})
endfunction()
