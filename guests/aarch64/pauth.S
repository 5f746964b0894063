// Signs a pointer, and gets it back by its signature.
// Options:

.arch_extension pauth
    mov x0, #0x5a5a                 // any key will do
    msr S3_0_C2_C1_0, x0            // APIAKeyLo_EL1
    msr S3_0_C2_C1_1, x0            // APIAKeyHi_EL1
    mrs x0, sctlr_el1
    orr x0, x0, #1 << 31            // EnIA: without it, signing changes nothing
    msr sctlr_el1, x0
    isb
    adr x1, .Lpauth_end
    mov x2, x1
    pacia x2, x1
    cmp x2, x1
    cset w0, eq                     // 1: it has no signature
    autia x2, x1
    cmp x2, x1
    cset w3, ne                     // 2: it is another one now
    orr w0, w0, w3, lsl #1
.Lpauth_end:
    mov x1, #EXIT
    str w0, [x1]
.arch_extension nopauth
