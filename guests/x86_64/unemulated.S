// Crashes: an access to a device by an instruction that KVM can't emulate.
// Options: --mode long

// The processor says where the guest touched a device, but not with which instruction: KVM decodes
// and emulates that itself. It knows no floating point.

.code64
    mov edi, 0xd0000000             // nothing is there
    fild qword ptr [rdi]
    hlt                             // not reached
