# `cmake --install` and what find_package(mixlane) needs.
include(CMakePackageConfigHelpers)

install(TARGETS mixlane EXPORT mixlane LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/mixlane DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY models tuned DESTINATION ${CMAKE_INSTALL_DATADIR}/mixlane FILES_MATCHING PATTERN "*.json")
install(EXPORT mixlane NAMESPACE mixlane:: FILE mixlane-config.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mixlane)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/mixlane-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mixlane-config-version.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/mixlane)
