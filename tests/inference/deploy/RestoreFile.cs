using System;
using System.IO;

// Restores a file of floats with the example of a pack: IN OUT HEIGHT WIDTH.
static class RestoreFile
{
    static void Main(string[] given)
    {
        var bytes = File.ReadAllBytes(given[0]);
        var pixels = new float[bytes.Length / sizeof(float)];
        Buffer.BlockCopy(bytes, 0, pixels, 0, bytes.Length);
        using (var restorer = new Restorer())
        {
            pixels = restorer.Restore(pixels, int.Parse(given[2]), int.Parse(given[3]));
        }
        bytes = new byte[pixels.Length * sizeof(float)];
        Buffer.BlockCopy(pixels, 0, bytes, 0, bytes.Length);
        File.WriteAllBytes(given[1], bytes);
    }
}
