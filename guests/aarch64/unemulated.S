// Crashes: an access to a device by an instruction that KVM can't emulate.
// Options:

// The processor tells its hypervisor what a faulting load or store was about to do, but only for
// those of one register. For a pair, KVM would have to decode the instruction, and does not.

    mov x2, #0                      // nothing is there
    ldp x0, x1, [x2]
    mov x1, #EXIT                   // not reached
    str wzr, [x1]
