# Every public header compiles by itself, without warnings, and pulls in nothing but the standard library and other
# public headers: no GPU, framework or third-party header.
cmake_minimum_required(VERSION 3.25)
file(GLOB headers ${ROOT}/include/mixlane/*.hpp)
foreach(header IN LISTS headers)
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/header_check.cpp "#include \"${header}\"\n")
  execute_process(
    COMMAND ${COMPILER} -std=c++20 -Wall -Wextra -Wshadow -Werror -H -fsyntax-only -I${ROOT}/include
            ${CMAKE_CURRENT_BINARY_DIR}/header_check.cpp
    RESULT_VARIABLE result
    ERROR_VARIABLE included)
  if(NOT result EQUAL 0)
    message(SEND_ERROR "${header} does not compile by itself:\n${included}")
  endif()
  string(REGEX MATCHALL "[^\n]*/(cuda|hip|torch|ATen|fmt|nlohmann|CLI|dnnl|oneapi|nccl|ucp)[^\n]*\\.(h|hpp)" foreign "${included}")
  if(foreign)
    message(SEND_ERROR "${header} includes ${foreign}")
  endif()
endforeach()
list(LENGTH headers count)
if(count EQUAL 0)
  message(FATAL_ERROR "no public headers under ${ROOT}/include")
endif()
