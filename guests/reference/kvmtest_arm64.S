// kvmtest for arm64: adds x0 and x1 and writes the sum in 8 bytes to x2, right above its RAM.
// Options: --ram 0x1000:4K --load 0x1000 --reg x0=2 --reg x1=2 --reg x2=0x2000 --debug-console mmio:0x2000,as=numbers

    add x0, x0, x1
    str x0, [x2]
    movz w0, #(PSCI_SYSTEM_OFF & 0xffff)
    movk w0, #(PSCI_SYSTEM_OFF >> 16), lsl #16
    hvc #0
