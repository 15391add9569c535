# MIXLANE_PRECOMPILE: headers that most C++ sources include are parsed once a target. A source that forgets one of them compiles
# all the same, so only the preset with the most sources turns this on, and the others find what it hides.
set(mixlane_common_headers <algorithm> <array> <chrono> <cstdint> <filesystem> <functional> <map> <memory> <optional> <span>
                           <sstream> <string> <unordered_map> <vector> <fmt/format.h>)

# mixlane_precompile(TARGET [HEADERS...]): the common headers and these.
function(mixlane_precompile target)
  if(MIXLANE_PRECOMPILE)
    target_precompile_headers(${target} PRIVATE ${mixlane_common_headers} ${ARGN})
  endif()
endfunction()

# mixlane_precompile_as(TARGET OTHER): those of another target with the same compile options and definitions.
function(mixlane_precompile_as target other)
  if(MIXLANE_PRECOMPILE)
    target_precompile_headers(${target} REUSE_FROM ${other})
  endif()
endfunction()
