# `cmake --install` and what find_package(mixlane) needs.
include(CMakePackageConfigHelpers)

if(MIXLANE_PORTABLE)
  # The threads' runtime comes as a shared object only; it is installed beside the library, which looks there first.
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=libgomp.so.1 OUTPUT_VARIABLE mixlane_gomp
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  file(REAL_PATH ${mixlane_gomp} mixlane_gomp)
  install(FILES ${mixlane_gomp} RENAME libgomp.so.1 DESTINATION ${CMAKE_INSTALL_LIBDIR})
  set_target_properties(mixlane PROPERTIES INSTALL_RPATH "$ORIGIN")
endif()

install(TARGETS mixlane EXPORT mixlane LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/mixlane DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY models tuned DESTINATION ${CMAKE_INSTALL_DATADIR}/mixlane FILES_MATCHING PATTERN "*.json")
install(EXPORT mixlane NAMESPACE mixlane:: FILE mixlane-config.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mixlane)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/mixlane-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mixlane-config-version.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mixlane)
