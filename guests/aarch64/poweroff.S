// Powers the machine off through PSCI.
// Options:

    movz w0, #(PSCI_SYSTEM_OFF & 0xffff)
    movk w0, #(PSCI_SYSTEM_OFF >> 16), lsl #16
    hvc #0
    mov w0, #1                      // not reached: status 1 says that PSCI did not listen
    mov x1, #EXIT
    str w0, [x1]
