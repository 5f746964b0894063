// Sums a vector of ones: as many as the CPU's longest vectors have bytes.
// Options:

// A guest starts with SVE untrapped, but with short vectors: ZCR_EL1.LEN is zero.

.arch_extension sve
    mov x0, #0xf                    // the longest that there are
    msr S3_0_C1_C2_0, x0            // ZCR_EL1
    isb
    ptrue p0.b
    mov z0.b, #1
    uaddv d0, p0, z0.b
    fmov x0, d0
    rdvl x1, #1                     // bytes of a vector
    subs x0, x0, x1
    mov x1, #EXIT
    str w0, [x1]
.arch_extension nosve
