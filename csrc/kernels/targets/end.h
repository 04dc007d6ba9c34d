/* From here on the compiler makes code for every processor again. */
#if defined(__clang__)
#pragma clang attribute pop
#endif
