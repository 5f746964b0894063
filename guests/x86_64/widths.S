// Writes and reads device memory (at rdi) by 1, 2, 4 and 8 bytes.
// Options: --mode long --debug-console mmio:0xd0000000,as=numbers --reg rdi=0xd0000000

// Every write shows as a number. What is read, where there is nothing, is all ones, just as many
// as were asked for; the 8-byte writes after the reads show how many arrived.

.code64
.Lwidths:
    mov rax, 0x8877665544332211
    mov [rdi], al
    mov [rdi], ax
    mov [rdi], eax
    mov [rdi], rax

    movzx eax, byte ptr [rdi + 0x100]
    mov [rdi], rax
    movzx eax, word ptr [rdi + 0x100]
    mov [rdi], rax
    mov eax, [rdi + 0x100]
    mov [rdi], rax
    mov rax, [rdi + 0x100]
    mov [rdi], rax
    xor eax, eax
    out EXIT, eax
