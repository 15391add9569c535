// One source, several instruction sets: the compiler makes a copy of a hot loop per x86-64 level and the loader picks.
#pragma once

// Marks a function whose loops are worth compiling for AVX-512 and AVX2 as well. The build never contracts a*b+c
// (-ffp-contract=off), so all copies give the same bits. Sanitizers can't be entered before main, where the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define MIXLANE_CPU_LEVELS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MIXLANE_CPU_LEVELS
#endif
