// Writes and reads device memory (at x1) by 1, 2, 4 and 8 bytes.
// Options: --debug-console mmio:0x10000,as=numbers --reg x1=0x10000

// Every write shows as a number. What is read, where there is nothing, is all ones, just as many
// as were asked for; the 8-byte writes after the reads show how many arrived.

.Lwidths:
    movz x0, #0x2211
    movk x0, #0x4433, lsl #16
    movk x0, #0x6655, lsl #32
    movk x0, #0x8877, lsl #48
    strb w0, [x1]
    strh w0, [x1]
    str w0, [x1]
    str x0, [x1]

    ldrb w0, [x1, #0x100]
    str x0, [x1]
    ldrh w0, [x1, #0x100]
    str x0, [x1]
    ldr w0, [x1, #0x100]
    str x0, [x1]
    ldr x0, [x1, #0x100]
    str x0, [x1]
    mov x1, #EXIT
    str wzr, [x1]
