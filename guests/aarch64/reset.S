// Asks for a reset, through PSCI.
// Options:

    movz w0, #(PSCI_SYSTEM_RESET & 0xffff)
    movk w0, #(PSCI_SYSTEM_RESET >> 16), lsl #16
    hvc #0
    mov x1, #EXIT                   // not reached
    str wzr, [x1]
