#include "/work/wt/dispatch/include/mixlane/version.hpp"
