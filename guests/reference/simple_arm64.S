// A simple arm64 VM: RAM from 1 MiB, a greeting to one-byte MMIO at 0x8000, exit at 0x10000.
// Options: --ram 0x100000:2M --load 0x101000 --debug-console mmio:0x8000,in=0x8004 --exit-register mmio:0x10000

.Lsimple_arm64:
    mov x1, #0x8000
    adr x2, .Lsimple_arm64_text
.Lsimple_arm64_next:
    ldrb w3, [x2], #1
    cbz w3, .Lsimple_arm64_end
    strb w3, [x1]
    b .Lsimple_arm64_next
.Lsimple_arm64_end:
    mov x1, #0x10000
    strb wzr, [x1]

.Lsimple_arm64_text:
    .asciz "Hello from a simple arm64 VM!\n"
