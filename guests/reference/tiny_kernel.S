// tiny_kernel: real mode in one page at 0, a greeting byte by byte to port 0xf1, then HLT.
// Options: --ram 0:4K --load 0 --debug-console port:0xf1

.code16
.Ltiny_kernel:
    mov si, offset .Ltiny_kernel_text
.Ltiny_kernel_next:
    lodsb
    test al, al
    jz .Ltiny_kernel_end
    out 0xf1, al
    jmp .Ltiny_kernel_next
.Ltiny_kernel_end:
    hlt
.Ltiny_kernel_message:
    .asciz "Hello,world\n"
.set .Ltiny_kernel_text, .Ltiny_kernel_message - .Ltiny_kernel
.code64
